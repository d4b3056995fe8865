"""What pyproject.toml cannot say: where nvcc is found, the package gets compiled kernels."""

import importlib.util
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

KERNELS = Path(__file__).parent / "kernels"


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


setup(cmdclass={"build_py": BuildWithKernels})
