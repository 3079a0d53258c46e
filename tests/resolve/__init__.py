"""The resolver: each rung alone, then the ladder against symbols, DWARF and offsetof."""
