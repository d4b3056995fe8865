"""TensorRT 10, 11 and TensorRT-RTX with one code: build, cache, run.

`flavour` finds the installed package, `build` turns an ONNX file into an engine, `execute` runs
one, `engine` is the `Engine` that joins them, `prebuilt` stores engines built ahead of time.
"""
