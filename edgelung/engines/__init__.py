"""Engines: one protocol, one file per runtime, and the choice between them.

How to add an engine:

1. Write a class that follows the `Engine` protocol of `base.py`; `openvino.py` is the shortest
   example. Its constructor follows `EngineFactory`. It raises EngineUnavailableError if the runtime
   is missing, or would run something other than what was asked for.
2. Enter it in the table `ENGINES` of `choose.py` under its name, which `--engine` then accepts. If
   `auto` is to try it, also enter it in `GPU_ENGINES` or `CPU_ENGINES`.
3. Add it to the engines of `tests/engines/test_engines.py`. At run time every engine has to
   reproduce the bundle's golden tiles before it predicts.
"""
