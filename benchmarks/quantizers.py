"""What people use to quantize an ONNX file, each at its defaults; run by quantization.py.

    python quantizers.py TOOL full.onnx tiles.npy out.onnx

In an environment that holds TOOL and nothing of edgelung. tiles.npy is uint8 [N, H, W, 3], what the
graph takes. Prints one line of JSON: seconds, peak memory in MB, the tool's version.
"""

import json
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np


def ort_static(graph: str, tiles: np.ndarray, out: str) -> None:
    """`quantize_static` with nothing but a reader of the calibration tiles, 8 at a time."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(np.split(tiles, range(8, len(tiles), 8)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"tiles": np.ascontiguousarray(batch)}

    quantize_static(graph, out, Reader())


def ort_dynamic(graph: str, tiles: np.ndarray, out: str) -> None:
    """`quantize_dynamic`; needs no tiles."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(graph, out)


def modelopt(graph: str, tiles: np.ndarray, out: str) -> None:
    """NVIDIA ModelOpt's `onnx.quantization.quantize`, calibrated on the CPU."""
    from modelopt.onnx.quantization import quantize

    quantize(graph, calibration_data={"tiles": tiles}, calibration_eps=["cpu"], output_path=out)


def nncf(graph: str, tiles: np.ndarray, out: str) -> None:
    """OpenVINO's NNCF on the ONNX file, told that it is a transformer, as its guide asks."""
    import nncf
    import onnx

    data = nncf.Dataset([tile[None] for tile in tiles], lambda tile: {"tiles": tile})
    found = nncf.quantize(
        onnx.load(graph),
        data,
        subset_size=len(tiles),
        model_type=nncf.ModelType.TRANSFORMER,
    )
    onnx.save(found, out)


# Tool → what it is asked to do, what its environment holds.
TOOLS = {
    "ort-static": (ort_static, ("onnxruntime", "onnx", "numpy", "sympy")),
    "ort-dynamic": (ort_dynamic, ("onnxruntime", "onnx", "numpy", "sympy")),
    "modelopt": (modelopt, ("nvidia-modelopt[onnx]", "onnxruntime", "setuptools")),
    "nncf": (nncf, ("nncf", "onnx", "onnxruntime", "openvino")),
}


def peak_mb() -> int:
    """Most memory that this program has held; `getrusage` would count its parent's too."""
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return round(int(peak.split()[1]) / 1024)


def main() -> None:
    """Quantize with one tool."""
    tool, graph, tiles, out = sys.argv[1:]
    work, packages = TOOLS[tool]
    found = np.load(tiles)
    start = time.perf_counter()
    work(graph, found, out)
    result = {
        "seconds": round(time.perf_counter() - start, 1),
        "peak_mb": peak_mb(),
        "version": metadata.version(packages[0].split("[")[0]),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
