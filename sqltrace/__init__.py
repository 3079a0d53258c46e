"""sqltrace shows what any running program does to its SQLite databases, without changing the program."""

__version__ = "0.1.0"
