"""Coverage-guided fuzzing of everything that reads files of strangers: `make fuzz`, docs/resolver.md."""
