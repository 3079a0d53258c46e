"""Print every table."""

from benchmarks import cost, flood, reader, resolver

reader.table()
resolver.table()
cost.table()
flood.table()
