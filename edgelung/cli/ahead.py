"""`edgelung export --engine`: engines that are built ahead of time, beside the finished bundle."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgelung.artifacts.bundle import Bundle
from edgelung.core.errors import EdgelungError
from edgelung.core.files import new_folder
from edgelung.core.terminal import err, progress
from edgelung.engines.base import EngineUnavailableError
from edgelung.engines.names import EngineName
from edgelung.engines.tensorrt.build import check_targets
from edgelung.engines.tensorrt.flavour import MODULES, Flavour, load_flavour
from edgelung.engines.tensorrt.prebuilt import PrebuiltEngine, build_ahead, planned_builds

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EnginePlan:
    """What --engine and --target ask for.

    Attributes:
        flavour: the TensorRT that builds.
        targets: architectures, such as sm_86.
        folder: a new folder for the engines, `<bundle>.engines`.
    """

    flavour: Flavour
    targets: Sequence[str]
    folder: Path


def plan_engines(engine: EngineName | None, target: str | None, bundle: Path) -> EnginePlan | None:
    """Check --engine and --target before the bundle is made; None if no engine is asked for.

    Raises:
        EdgelungError: if the engine is not built ahead of time or not installed, or a target is
            missing or unknown.
    """
    if engine is None:
        if target is not None:
            raise EdgelungError("--target needs --engine tensorrt-rtx")
        return None
    if engine not in MODULES:
        raise EdgelungError(
            f"engine {engine} is not built ahead of time; expected tensorrt-rtx "
            "(the others load the bundle's ONNX files as they are)"
        )
    if engine == EngineName.TENSORRT:
        raise EdgelungError(
            "TensorRT builds its engines on the GPU that runs them, at the first `edgelung infer "
            f"--engine tensorrt`; {_what_is_missing()}. Ahead of time, without that GPU, --engine "
            "tensorrt-rtx --target sm_89 builds them"
        )
    try:
        flavour = load_flavour(engine)
    except EngineUnavailableError as error:
        raise EdgelungError(str(error)) from error
    if target is None:
        raise EdgelungError(
            f"--engine {engine} needs --target: one or more of {', '.join(flavour.targets())}"
        )
    folder = bundle.with_name(f"{bundle.name}.engines")
    new_folder(folder, "engines", option="the folder")
    return EnginePlan(flavour, check_targets(flavour, target.split(",")), folder)


def _what_is_missing() -> str:
    from edgelung.tools.doctor import examine

    needed = ("GPU", "driver", "TensorRT", "pycuda", "cuda-bindings")
    missing = [row.what for row in examine() if row.what in needed and row.state != "ok"]
    return f"this machine lacks {', '.join(missing)}" if missing else "nothing is missing here"


def build_engines(plan: EnginePlan, bundle: Bundle) -> None:
    """Build the engines of every variant that passed its gate; report them and what is left out."""
    with progress("build engines", len(planned_builds(bundle, plan.targets))) as advance:
        engines = build_ahead(bundle, plan.folder, plan.flavour, plan.targets, advance)
    _print_engines(engines, plan.folder)
    built = {(engine.variant, engine.target) for engine in engines}
    for precision, variant in bundle.variants.items():
        if not variant.passed:
            logger.info("no engine of %s: its gate says %s", precision, variant.gate.verdict)
            continue
        for target in plan.targets:
            if (precision, target) not in built:
                logger.info("no engine of %s for %s, which has no FP8", precision, target)


def _print_engines(engines: Sequence[PrebuiltEngine], folder: Path) -> None:
    from rich.table import Table

    table = Table("engine", "MB", "batch", "linears by type")
    for engine in engines:
        types = ", ".join(f"{n} {name}" for name, n in engine.contents.types.items())
        table.add_row(engine.file, f"{engine.bytes / 1e6:.1f}", engine.profile, types)
    err().print(table)
    logger.info(
        "engines %s: programs for the GPU, outside the bundle; run them with the TensorRT-RTX that "
        "built them (%s): edgelung infer --engine tensorrt-rtx --prebuilt %s",
        *(folder, engines[0].version, folder),
    )
