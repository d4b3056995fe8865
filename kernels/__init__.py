"""CUDA kernels, their host twins (compiled by g++, for tests without a GPU) and their loader.

Installed as `edgelung.kernels`.
"""
