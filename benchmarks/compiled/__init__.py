"""Kernels compiled for GPUs without having one, and reports of the compilers: `make kernel-report`."""
