"""Print every table."""

from benchmarks import cost, reader

reader.table()
cost.table()
