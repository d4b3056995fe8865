"""What this machine has for running a bundle, what it lacks, and the one command that mends it.

Every row is a fact that was looked up here and now; nothing is built and no engine is loaded
(`selftest` does that). Whatever a look-up raises becomes the row's text: a doctor does not faint.
"""

import importlib
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from edgelung import __version__
from edgelung.artifacts.bundle import Bundle
from edgelung.core.cache import ENGINE_FOLDER, cache_folder, list_entries, make_private
from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.system import version
from edgelung.engines.base import EngineUnavailableError
from edgelung.engines.cuda import GRAPHS, Device, driver_version, gpu_present
from edgelung.engines.tensorrt.flavour import INSTALL, MODULES, load_flavour
from edgelung.kernels import build as kernels

NVIMGCODEC = "nvidia.nvimgcodec"
DRIVER = "install NVIDIA's driver 580 or later (CUDA 13)"
# The row that says whether an engine is there.
GPU_ROWS = {
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
    "onnxruntime-cuda": "ONNX Runtime CUDA",
}
CPU_ROWS = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}


@dataclass(frozen=True)
class Finding:
    """One row: 'ok', 'missing' (something would be gained) or 'none' (nothing to mend here)."""

    what: str
    state: str
    found: str
    mend: str = ""


def examine() -> list[Finding]:
    """Look at everything, in the order of the table."""
    looks: list[Callable[[bool], list[Finding]]] = [
        _python,
        _gpu,
        _tensorrt,
        _cuda_python,
        _onnxruntime,
        _openvino,
        _nvimgcodec,
        _resize,
        _kernels,
        _cache,
    ]
    here = gpu_present()
    findings: list[Finding] = []
    for look in looks:
        try:
            findings += look(here)
        except Exception as error:
            findings.append(Finding(look.__name__.strip("_"), "missing", one_line(error)))
    return findings


def choice(findings: list[Finding]) -> str:
    """Which engine `infer` would choose here, and why."""
    found = {finding.what: finding.found for finding in findings}
    ready = {finding.what for finding in findings if finding.state == "ok"}
    if "GPU" in ready:
        usable = [name for name, row in GPU_ROWS.items() if row in ready]
        if usable:
            return (
                f"auto times {', '.join(usable)} with every variant that passed its gate, at first "
                "use, and remembers the fastest"
            )
        why = f"{found['GPU']} is here, but no GPU engine is"
    else:
        why = f"no GPU engine: {found.get('GPU', 'the GPU could not be looked for')}"
    for name, row in CPU_ROWS.items():
        if row in ready:
            return f"{name} on the CPU, INT8 before FP32 ({why})"
    return f"none: neither OpenVINO nor ONNX Runtime loads ({why})"


def selftest(bundle: Bundle) -> list[dict[str, Any]]:
    """The golden tiles of every variant on every engine: what agrees, by how much, what cannot run.

    `state` is 'ok', 'wrong' (it runs and disagrees) or 'unavailable'.
    """
    from edgelung.core.system import available_cores
    from edgelung.engines.choose import ENGINES, check_golden

    results: list[dict[str, Any]] = []
    for name, factory in ENGINES.items():
        for variant in bundle.variants.values():
            row: dict[str, Any] = {"engine": name, "precision": variant.precision}
            try:
                engine = factory(variant.path, available_cores())
            except Exception as error:  # each runtime has types of its own
                results.append(row | {"state": "unavailable", "reason": one_line(error)})
                if isinstance(error, EngineUnavailableError):
                    break  # the other variants would say the same
                continue
            try:
                difference = check_golden(bundle, engine, variant.precision)
                results.append(row | {"state": "ok", "golden_difference": difference})
            except EdgelungError as error:
                results.append(row | {"state": "wrong", "reason": str(error)})
            finally:
                engine.close()
    return results


def as_json(findings: list[Finding], tests: list[dict[str, Any]] | None) -> dict[str, Any]:
    """The whole examination for a script."""
    return {
        "findings": [asdict(finding) for finding in findings],
        "choice": choice(findings),
        "selftest": tests,
    }


def _python(here: bool) -> list[Finding]:
    system = f"{platform.system()} {platform.machine()}"
    return [
        Finding("Python", "ok", f"{sys.version.split()[0]} on {system}"),
        Finding("edgelung", "ok", __version__),
    ]


def _gpu(here: bool) -> list[Finding]:
    rows = ("GPU", "compute capability", "driver", "CUDA")
    try:
        device = Device()
    except EngineUnavailableError as error:
        if not here:
            nothing = [Finding(row, "none", "–") for row in rows[1:]]
            return [Finding("GPU", "none", "no NVIDIA GPU is visible"), *nothing]
        driver = driver_version()
        mend = "pip install 'edgelung[gpu]'" if driver else DRIVER
        return [
            Finding("GPU", "missing", one_line(error), mend),
            Finding("compute capability", "none", "not read without pycuda"),
            Finding("driver", "ok", driver)
            if driver
            else Finding("driver", "missing", "not found", DRIVER),
            Finding("CUDA", "none", "not read without pycuda"),
        ]
    memory = device.memory_bytes / 2**30
    capability = ".".join(map(str, device.capability))
    return [
        Finding("GPU", "ok", f"{device.name}, {memory:.0f} GiB"),
        Finding("compute capability", "ok", f"{capability} ({device.architecture})"),
        Finding("driver", "ok", device.driver),
        Finding("CUDA", "ok", f"up to {device.cuda}"),
    ]


def _tensorrt(here: bool) -> list[Finding]:
    rows = []
    for name in MODULES:
        title = "TensorRT-RTX" if name == "tensorrt-rtx" else "TensorRT"
        try:
            flavour = load_flavour(name)
        except EngineUnavailableError as error:
            # Without a GPU only TensorRT-RTX is of use: it builds ahead of time.
            mend = INSTALL[name] if here else ""
            rows.append(Finding(title, "missing" if here else "none", one_line(error, 90), mend))
            continue
        targets = flavour.targets()
        more = f", builds for {', '.join(targets)}" if targets else ""
        own = _architecture() if here else None
        if targets and own and own not in targets:
            found = f"{flavour.version} does not know this GPU ({own}){more}"
            served = any(row.state == "ok" for row in rows)  # by the full TensorRT
            mend = "" if served else INSTALL["tensorrt"]
            rows.append(Finding(title, "none" if served else "missing", found, mend))
        else:
            rows.append(Finding(title, "ok", f"{flavour.version}{more}"))
    return rows


def _architecture() -> str | None:
    """Of the GPU, 'sm_90' say; None where it cannot be asked."""
    try:
        return Device().architecture
    except EngineUnavailableError:
        return None


def _cuda_python(here: bool) -> list[Finding]:
    rows = []
    for package, module, use in (
        ("pycuda", "pycuda.driver", "device memory, streams, kernels"),
        ("cuda-bindings", GRAPHS, "CUDA graphs"),
    ):
        installed = version(package)
        try:
            importlib.import_module(module)
            rows.append(Finding(package, "ok", f"{installed} ({use})"))
        except Exception as error:
            state = "missing" if here else "none"
            found = f"{installed}: {one_line(error, 70)}" if installed else "not installed"
            rows.append(Finding(package, state, found, "pip install 'edgelung[gpu]'" * here))
    return rows


def _onnxruntime(here: bool) -> list[Finding]:
    try:
        import onnxruntime as ort
    except Exception as error:
        mend = "pip install onnxruntime-gpu"
        missing = Finding("ONNX Runtime", "missing", one_line(error, 90), mend)
        return [missing, Finding("ONNX Runtime CUDA", "none", "–")]
    offered = [name.removesuffix("ExecutionProvider") for name in ort.get_available_providers()]
    rows = [Finding("ONNX Runtime", "ok", f"{ort.__version__}, providers {', '.join(offered)}")]
    if not here:
        return [*rows, Finding("ONNX Runtime CUDA", "none", "needs a GPU")]
    libraries = [p for p in ("nvidia-cudnn-cu13", "nvidia-cublas") if not version(p)]
    if "CUDA" not in offered:
        mend = "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
        return [*rows, Finding("ONNX Runtime CUDA", "missing", "built without CUDA", mend)]
    if libraries:
        mend = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
        found = f"{', '.join(libraries)} not installed by pip (the system's may serve)"
        return [*rows, Finding("ONNX Runtime CUDA", "missing", found, mend)]
    return [*rows, Finding("ONNX Runtime CUDA", "ok", "with CUDA and cuDNN")]


def _openvino(here: bool) -> list[Finding]:
    try:
        import openvino as ov
    except Exception as error:
        return [Finding("OpenVINO", "missing", one_line(error, 90), "pip install openvino")]
    core = ov.Core()
    devices = [f"{d} ({core.get_property(d, 'FULL_DEVICE_NAME')})" for d in core.available_devices]
    held = f"{ov.__version__.split('-')[0]}, {', '.join(devices)}"
    if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        held += ", BF16 beside INT8"
    return [Finding("OpenVINO", "ok", held)]


def _nvimgcodec(here: bool) -> list[Finding]:
    try:
        codec = importlib.import_module(NVIMGCODEC)
    except Exception:
        return [Finding("nvimgcodec", "none", "not installed, not needed: the CPU decodes")]
    held = f"{codec.__version__}; not used: it cannot decode at 3/8, say, as the reader does"
    return [Finding("nvimgcodec", "ok", held)]


def _resize(here: bool) -> list[Finding]:
    try:
        importlib.import_module("edgelung.kernels._resize")
    except ImportError as error:
        found = f"by Pillow: the same pixels, slower ({one_line(error, 60)})"
        if sys.platform != "linux" or platform.machine() != "x86_64":
            return [Finding("CPU resize", "none", found)]
        mend = "with g++ 12 and Python's headers: pip install --no-cache-dir --force-reinstall ."
        return [Finding("CPU resize", "missing", found, mend)]
    return [Finding("CPU resize", "ok", "compiled")]


def _kernels(here: bool) -> list[Finding]:
    record = kernels.read_record()
    if record is None:
        mend = "python -m edgelung.kernels.build  # needs nvcc" if here else ""
        found = "not built, or not of these sources; tiles are resized on the CPU"
        return [Finding("cubins", "missing" if here else "none", found, mend)]
    held = ", ".join(record["architectures"])
    return [Finding("cubins", "ok", f"{held}, PTX {record['ptx']} ({record['compiler']})")]


def _cache(here: bool) -> list[Finding]:
    try:
        folder = cache_folder(ENGINE_FOLDER)
        if folder is None:
            return [Finding("engine cache", "none", "switched off: EDGELUNG_CACHE is 'off'")]
        if not folder.exists():
            return [Finding("engine cache", "none", f"{folder} (empty)")]
        make_private(folder)
        files = list_entries(folder)
    except EdgelungError as error:
        return [Finding("engine cache", "missing", str(error))]
    size = sum(path.stat().st_size for path in files) / 2**20
    return [Finding("engine cache", "ok", f"{folder}: {len(files)} entries, {size:.0f} MiB")]
