"""What several tests share: programs to trace, builders of binaries."""
