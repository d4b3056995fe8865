"""CUDA kernels, their host-compiled twins for tests without a GPU, and their loader."""
