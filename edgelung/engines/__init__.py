"""Engines: one protocol, one file per runtime, and the choice between them.

How to add an engine:

1. Give it a name in `names.py`: `--engine` then accepts it. If `auto` is to try it, also enter it
   in `AUTO_GPU_ENGINES` or `CPU_ENGINES` there; an engine of a GPU belongs in `GPU_ENGINES`.
2. Write a class that follows the `Engine` protocol of `base.py`; `openvino.py` is the shortest
   example. Its constructor follows `EngineFactory`. It raises EngineUnavailableError if the runtime
   is missing, or would run something other than what was asked for.
3. Enter the class in the table `ENGINES` of `choose.py`.
   An engine of a CPU that also follows `StageEngine` runs models with an early exit
   (`early_exit.py`), and so does an engine of a GPU that is a `DeviceEngine` (`device_engine.py`);
   others are left out for them.
4. Add its packages to `core/system.py` and `pyproject.toml`, a row to `tools/doctor.py`, and it to
   the engines of `tests/engines/test_engines.py`. At run time every engine has to reproduce the
   bundle's golden tiles before it predicts.
"""
