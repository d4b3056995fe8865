"""What pyproject.toml cannot say: the package's compiled parts, where there is a compiler."""

import importlib.util
import platform
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

KERNELS = Path(__file__).parent / "kernels"

# The CPU reader's resize. Optional: without it Pillow does the same, slower.
RESIZE = Extension(
    "edgelung.kernels._resize",
    ["kernels/resize_cpu.cpp"],
    depends=["kernels/resize.h"],
    # No contraction into fused multiply-adds: a weight's last bit can move a pixel.
    # No debug information: it names the folder of the build, so no two builds would be the same.
    extra_compile_args=["-std=c++17", "-O3", "-ffp-contract=off", "-g0"],
    py_limited_api=True,
    optional=True,
)
# Where it was measured; free-threaded Python has no stable ABI to build it for.
MEASURED = (
    sys.platform == "linux"
    and platform.machine() == "x86_64"
    and not sysconfig.get_config_var("Py_GIL_DISABLED")
)


class BuildWithKernels(build_py):
    """Compile the kernels first; without nvcc the package is built without them and says so."""

    def run(self) -> None:
        spec = importlib.util.spec_from_file_location("kernels_build", KERNELS / "build.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        record = module.build(KERNELS)
        print(module.describe(record) if record else "no nvcc found: built without CUDA kernels")
        super().run()


setup(
    cmdclass={"build_py": BuildWithKernels},
    ext_modules=[RESIZE] if MEASURED else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if MEASURED else {},
)
