"""What this machine has for running a bundle, what it lacks, and the command that installs it.

Every row of the table is looked up when it is shown. Nothing is built and no engine is loaded, but
by `run_selftest`. If a look-up raises, its message becomes the row: the others are still shown.
"""

import importlib
import platform
import sys
from collections.abc import Callable, Sequence
from typing import Literal

from msgspec import Struct, field

from edgelung import __version__
from edgelung.artifacts.bundle import Bundle
from edgelung.core.cache import ENGINE_FOLDER, cache_folder, list_entries, make_private
from edgelung.core.deadlines import loading
from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.precision import Precision
from edgelung.core.system import available_cores, saturates_int8, version
from edgelung.engines.base import EngineUnavailableError
from edgelung.engines.cuda import GRAPHS, Device, driver_version, gpu_present
from edgelung.engines.names import GPU_ENGINES, EngineName
from edgelung.engines.tensorrt.flavour import INSTALL, MODULES, load_flavour
from edgelung.kernels import build as kernels

NVIMGCODEC = "nvidia.nvimgcodec"
INSTALL_GPU = "pip install 'edgelung[gpu]'"
NO_VNNI = "this CPU has no VNNI"  # see `saturates_int8`
DRIVER = "install NVIDIA's driver 580 or later (CUDA 13)"
# The row that shows whether an engine can run, in the order in which `auto` tries them.
GPU_ROWS = {
    EngineName.TENSORRT: "TensorRT",
    EngineName.TENSORRT_RTX: "TensorRT-RTX",
    EngineName.ONNXRUNTIME_CUDA: "ONNX Runtime CUDA",
}
CPU_ROWS = {EngineName.OPENVINO: "OpenVINO", EngineName.ONNXRUNTIME: "ONNX Runtime"}

State = Literal["ok", "missing", "none"]


class Finding(Struct, frozen=True):
    """A row of the table.

    Attributes:
        what: what was looked up.
        state: 'ok'; 'missing' if installing it would gain something; 'none' if it is not needed.
        found: what is there.
        remedy: the command that installs what is missing.
    """

    what: str
    state: State
    found: str
    remedy: str = field(name="mend", default="")


class EngineTest(Struct, frozen=True, omit_defaults=True):
    """The golden tiles of one variant on one engine.

    Attributes:
        state: 'ok'; 'wrong' if the engine runs and disagrees; 'unavailable'.
        reason: why it is not 'ok'.
        golden_difference: largest |Δ probability|.
    """

    engine: EngineName
    precision: Precision
    state: Literal["ok", "wrong", "unavailable"]
    reason: str = ""
    golden_difference: float | None = None


class Examination(Struct, frozen=True):
    """Everything that `edgelung doctor` reports; `selftest` is None if it was not asked for."""

    findings: list[Finding]
    choice: str
    selftest: list[EngineTest] | None


def examine_machine(
    more: Sequence[Finding] = (), selftest: list[EngineTest] | None = None
) -> Examination:
    """Look everything up; the rows `more` come last."""
    findings = examine()
    return Examination([*findings, *more], choose_engine(findings), selftest)


def examine() -> list[Finding]:
    """Look everything up, in the order of the table."""
    has_gpu = gpu_present()
    findings: list[Finding] = []
    for look_up in LOOK_UPS:
        try:
            findings += look_up(has_gpu)
        except Exception as error:
            findings.append(Finding(look_up.__name__.strip("_"), "missing", one_line(error)))
    return findings


def choose_engine(findings: Sequence[Finding]) -> str:
    """Say which engine `infer` would choose here, and why."""
    found = {finding.what: finding.found for finding in findings}
    ready = {finding.what for finding in findings if finding.state == "ok"}
    if "GPU" in ready:
        usable = [name for name, row in GPU_ROWS.items() if row in ready]
        if usable:
            return (
                f"auto: at first use it times {', '.join(usable)} with every variant that passed "
                "its gate, and remembers the fastest"
            )
        why = f"{found['GPU']} is here, but no GPU engine is"
    else:
        why = f"no GPU engine: {found.get('GPU', 'the GPU could not be looked up')}"
    names = [name for name, row in CPU_ROWS.items() if row in ready]
    if saturates_int8() and EngineName.ONNXRUNTIME in names:
        return f"{EngineName.ONNXRUNTIME} on the CPU, INT8 before FP32 ({why}; {NO_VNNI})"
    if saturates_int8() and names:
        return f"{names[0]} on the CPU, FP32 ({why}; {NO_VNNI})"
    if names:
        return f"{names[0]} on the CPU, INT8 before FP32 ({why})"
    return f"none: neither OpenVINO nor ONNX Runtime loads ({why})"


def run_selftest(bundle: Bundle) -> list[EngineTest]:
    """Run the golden tiles of every variant on every engine."""
    with loading(bundle.folder, builds_gpu_engines=gpu_present()):
        return _run_selftest(bundle)


def _run_selftest(bundle: Bundle) -> list[EngineTest]:
    from edgelung.engines.choose import ENGINES, UNRELIABLE, check_golden, load_variant

    results: list[EngineTest] = []
    first = next(iter(bundle.variants.values()))
    for name, factory in ENGINES.items():
        for precision, variant in bundle.variants.items():
            if reason := UNRELIABLE.get((name, precision)):
                results.append(EngineTest(name, precision, "unavailable", reason))
                continue
            try:
                engine = load_variant(factory, variant, available_cores())
            except Exception as error:  # runtimes raise their own exception types
                lacks_gpu = name in GPU_ENGINES and not gpu_present()
                reason = "needs an NVIDIA GPU; none is visible" if lacks_gpu else one_line(error)
                results.append(EngineTest(name, precision, "unavailable", reason))
                if isinstance(error, EngineUnavailableError) and variant is first:
                    break  # the engine is not there: the others would give the same reason
                continue
            try:
                difference = check_golden(bundle, engine, precision)
                results.append(EngineTest(name, precision, "ok", golden_difference=difference))
            except EdgelungError as error:
                results.append(EngineTest(name, precision, "wrong", str(error)))
            finally:
                engine.close()
    return results


def _python(has_gpu: bool) -> list[Finding]:
    system = f"{platform.system()} {platform.machine()}"
    return [
        Finding("Python", "ok", f"{sys.version.split()[0]} on {system}"),
        Finding("edgelung", "ok", __version__),
    ]


def _gpu(has_gpu: bool) -> list[Finding]:
    rows = ("GPU", "compute capability", "driver", "CUDA")
    try:
        device = Device()
    except EngineUnavailableError as error:
        if not has_gpu:
            nothing = [Finding(row, "none", "–") for row in rows[1:]]
            return [Finding("GPU", "none", "no NVIDIA GPU is visible"), *nothing]
        driver = driver_version()
        remedy = INSTALL_GPU if driver else DRIVER
        return [
            Finding("GPU", "missing", one_line(error), remedy),
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


def _tensorrt(has_gpu: bool) -> list[Finding]:
    rows = []
    for name in MODULES:
        title = "TensorRT-RTX" if name == "tensorrt-rtx" else "TensorRT"
        try:
            flavour = load_flavour(name)
        except EngineUnavailableError as error:
            reason = str(error).removesuffix(INSTALL[name]).rstrip("; :")
            # Without a GPU only TensorRT-RTX is of use: it builds ahead of time.
            remedy = INSTALL[name] if has_gpu else ""
            state: State = "missing" if has_gpu else "none"
            rows.append(Finding(title, state, one_line(reason), remedy))
            continue
        targets = flavour.targets()
        more = f", builds for {', '.join(targets)}" if targets else ""
        own = _architecture() if has_gpu else None
        if targets and own and own not in targets:
            found = f"{flavour.version} does not know this GPU ({own}){more}"
            has_tensorrt = any(row.state == "ok" for row in rows)  # the full one serves this GPU
            remedy = "" if has_tensorrt else INSTALL["tensorrt"]
            rows.append(Finding(title, "none" if has_tensorrt else "missing", found, remedy))
        else:
            rows.append(Finding(title, "ok", f"{flavour.version}{more}"))
    return rows


def _architecture() -> str | None:
    """Return the GPU's architecture, such as 'sm_90'; None if it cannot be read."""
    try:
        return Device().architecture
    except EngineUnavailableError:
        return None


def _cuda_python(has_gpu: bool) -> list[Finding]:
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
            state: State = "missing" if has_gpu else "none"
            found = f"{installed}: {one_line(error)}" if installed else "not installed"
            rows.append(Finding(package, state, found, INSTALL_GPU if has_gpu else ""))
    return rows


def _onnxruntime(has_gpu: bool) -> list[Finding]:
    try:
        import onnxruntime as ort
    except Exception as error:
        remedy = "pip install onnxruntime-gpu"
        row = Finding("ONNX Runtime", "missing", one_line(error), remedy)
        return [row, Finding("ONNX Runtime CUDA", "none", "–")]
    providers = [name.removesuffix("ExecutionProvider") for name in ort.get_available_providers()]
    rows = [Finding("ONNX Runtime", "ok", f"{ort.__version__}, providers {', '.join(providers)}")]
    if not has_gpu:
        return [*rows, Finding("ONNX Runtime CUDA", "none", "needs a GPU")]
    missing = [p for p in ("nvidia-cudnn-cu13", "nvidia-cublas") if not version(p)]
    if "CUDA" not in providers:
        remedy = "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
        return [*rows, Finding("ONNX Runtime CUDA", "missing", "built without CUDA", remedy)]
    if missing:
        remedy = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
        found = f"{', '.join(missing)} not installed by pip (the system may have them)"
        return [*rows, Finding("ONNX Runtime CUDA", "missing", found, remedy)]
    return [*rows, Finding("ONNX Runtime CUDA", "ok", "with CUDA and cuDNN")]


def _openvino(has_gpu: bool) -> list[Finding]:
    try:
        import openvino as ov
    except Exception as error:
        return [Finding("OpenVINO", "missing", one_line(error), "pip install openvino")]
    core = ov.Core()
    devices = [f"{d} ({core.get_property(d, 'FULL_DEVICE_NAME')})" for d in core.available_devices]
    found = f"{ov.__version__.split('-')[0]}, {', '.join(devices)}"
    if saturates_int8():
        found += f", no INT8: {NO_VNNI}"
    elif "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        found += ", BF16 beside INT8"
    return [Finding("OpenVINO", "ok", found)]


def _nvimgcodec(has_gpu: bool) -> list[Finding]:
    try:
        codec = importlib.import_module(NVIMGCODEC)
    except Exception:
        return [Finding("nvimgcodec", "none", "not installed, not needed: the CPU decodes")]
    found = f"{codec.__version__}; not used: it cannot decode at 3/8, say, as the reader does"
    return [Finding("nvimgcodec", "ok", found)]


def _resize(has_gpu: bool) -> list[Finding]:
    try:
        importlib.import_module("edgelung.kernels._resize")
    except ImportError as error:
        found = f"by Pillow: the same pixels, slower ({one_line(error)})"
        if sys.platform != "linux" or platform.machine() != "x86_64":
            return [Finding("CPU resize", "none", found)]
        remedy = "with g++ 12 and Python's headers: pip install --no-cache-dir --force-reinstall ."
        return [Finding("CPU resize", "missing", found, remedy)]
    return [Finding("CPU resize", "ok", "compiled")]


def _kernels(has_gpu: bool) -> list[Finding]:
    record = kernels.read_record()
    if record is None:
        remedy = "python -m edgelung.kernels.build  # needs nvcc" if has_gpu else ""
        found = "not built from these sources; tiles are resized on the CPU"
        return [Finding("cubins", "missing" if has_gpu else "none", found, remedy)]
    found = ", ".join(record["architectures"])
    return [Finding("cubins", "ok", f"{found}, PTX {record['ptx']} ({record['compiler']})")]


def _cache(has_gpu: bool) -> list[Finding]:
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


LOOK_UPS: tuple[Callable[[bool], list[Finding]], ...] = (
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
)
