"""Print every table."""

from benchmarks import cost, reader, resolver

reader.table()
resolver.table()
cost.table()
