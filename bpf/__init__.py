"""BPF programs, the wire format of every backend, and the headers that bcc needs to compile."""
