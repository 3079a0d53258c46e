"""Rebuilds the catalogue: sources from npm and PyPI, types from gcc and pahole, minimised and in canonical order."""
