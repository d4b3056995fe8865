"""TensorRT 10, 11 and TensorRT-RTX behind one module: build, cache, run."""
