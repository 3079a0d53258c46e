"""The catalogue of SQLite's struct layouts: one BTF file per distinct layout, and an index of the releases.

`catalogue` answers "where is Vdbe.zSql in 3.50.4, compiled with these options?", `reader` reads BTF, and
`generate/` (in the checkout only, not in the wheel) rebuilds everything from SQLite's sources: `make catalogue`.
"""
