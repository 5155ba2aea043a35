"""Architectures: each family is one file that reads like its paper and calls coarse kernels; none of them opens a file."""
