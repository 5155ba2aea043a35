"""Architectures: one file per family, which reads like its paper, calls coarse kernels and opens no file."""
