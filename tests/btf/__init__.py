"""The catalogue: its reader against bpftool and noise, its answers against gcc and real binaries, its generator."""
