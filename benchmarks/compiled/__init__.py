"""Kernels compiled for GPUs that are not there, and what compilers say of them: `make kernel-report`."""
