"""Start the command that is to be observed as our child: its exit status and signals are then ours to pass on."""
