"""Convolution and pooling in plain tensor algebra: the CPU path, and the oracle for the kernels."""
