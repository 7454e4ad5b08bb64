"""One folder per op; each holds its contract, its definition and its kernels."""
