// All kernels, as one unit: compiled into one fat binary for the device (build.py).
#include "early_exit.cu"
#include "resize.cu"
