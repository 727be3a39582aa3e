"""`python -m fastvid_kernels.cli`, and where the entry point `fastvid` begins."""

from fastvid_kernels.cli import main

if __name__ == "__main__":
    main()
