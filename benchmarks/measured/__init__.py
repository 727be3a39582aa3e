"""The operator measured: `make bench`, memory, and what a call costs the host."""
