"""`edgelung export`."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgelung.cli.options import INPUT, OUTPUT, training_extra

if TYPE_CHECKING:
    from edgelung.artifacts.bundle import Bundle, Sensitivity, VariantEntry
    from edgelung.engines.tensorrt.prebuilt import PrebuiltEngine


logger = logging.getLogger(__name__)

VARIANTS, JUDGING, AHEAD = "Variants", "Calibration and gate", "Engines ahead of time"


def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder that `edgelung train` wrote.")
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="BUNDLE", rich_help_panel=OUTPUT, help="New bundle folder to write."),
    ],
    fp16: Annotated[
        bool, typer.Option("--fp16", rich_help_panel=VARIANTS, help="Add an FP16 variant.")
    ] = False,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            rich_help_panel=VARIANTS,
            help="Add INT8 variants, for CPUs and for GPUs, calibrated on validation tiles.",
        ),
    ] = False,
    fp8: Annotated[
        bool,
        typer.Option(
            "--fp8",
            rich_help_panel=VARIANTS,
            help="Add an FP8 (E4M3) variant for GPUs from SM 89 on, calibrated like INT8.",
        ),
    ] = False,
    qat: Annotated[
        bool,
        typer.Option(
            "--qat",
            rich_help_panel=VARIANTS,
            help="If INT8 does not pass its gate, train it on the training tiles.",
        ),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=INPUT,
            help="The run's tiles.  [default: the folder that the run names]",
        ),
    ] = None,
    outside: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=INPUT,
            help="Tiles of none of the classes: report how confident the model is on them.",
        ),
    ] = None,
    calibration: Annotated[
        str,
        typer.Option(
            metavar="METHOD",
            rich_help_panel=JUDGING,
            help="How INT8 ranges are found: auto, min-max, percentile, entropy or mse.",
        ),
    ] = "auto",
    calibration_tiles: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=JUDGING,
            help="Validation tiles that calibrate INT8, in whole groups.",
        ),
    ] = 512,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            rich_help_panel=JUDGING,
            help="Require 99.9 % of full precision's balanced accuracy.",
        ),
    ] = False,
    allow_drop: Annotated[
        bool,
        typer.Option(
            "--allow-drop",
            rich_help_panel=JUDGING,
            help="Exit with code 0 even if a variant did not pass its gate.",
        ),
    ] = False,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=AHEAD,
            help="Also build engines, without a GPU: tensorrt-rtx.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="SM,SM",
            rich_help_panel=AHEAD,
            help="With --engine: architectures to build for, such as sm_86,sm_89.",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", rich_help_panel=OUTPUT, help="Print bundle.json on standard output."
        ),
    ] = False,
) -> None:
    """Which variants of a run are as good as full precision?

    Writes a bundle: full precision and the variants asked for, each judged against it, with the
    evidence. Exit code 4: a variant did not pass its gate.
    """
    from edgelung.core.errors import EdgelungError, ExitCode
    from edgelung.core.precision import Precision
    from edgelung.core.typed_json import plain

    if qat and not int8:
        raise EdgelungError("--qat trains the INT8 variant; it needs --int8")
    ahead = _ahead_of_time(engine, target, out)  # refused before the work, not after

    with training_extra("export"):
        from edgelung.export.build import export_run

    variants = {Precision.FP16: fp16, Precision.INT8: int8, Precision.FP8: fp8}
    bundle = export_run(
        run,
        out,
        precisions=frozenset(precision for precision, asked in variants.items() if asked),
        qat=qat,
        data=data,
        outside=outside,
        calibration=calibration,
        calibration_tiles=calibration_tiles,
        strict=strict,
    )
    if ahead:
        ahead(bundle)
    if as_json:
        print(json.dumps(plain(bundle.manifest), indent=2))
    else:
        _print_table(bundle.manifest.variants, out)
        _print_sensitivity(bundle.manifest.sensitivity)
    if any(not variant.passed for variant in bundle.variants.values()) and not allow_drop:
        raise typer.Exit(ExitCode.GATE)


def _ahead_of_time(
    engine: str | None, target: str | None, out: Path
) -> Callable[["Bundle"], None] | None:
    """Check --engine and --target; return the function that builds a bundle's engines.

    The engines go to `<out>.engines`. None if no engine was asked for.
    """
    from edgelung.core.errors import EdgelungError
    from edgelung.core.files import new_folder
    from edgelung.engines.base import EngineUnavailableError
    from edgelung.engines.tensorrt.build import check_targets
    from edgelung.engines.tensorrt.flavour import MODULES, load_flavour

    if engine is None:
        if target is not None:
            raise EdgelungError("--target needs --engine tensorrt-rtx")
        return None
    if engine not in MODULES:
        raise EdgelungError(
            f"engine {engine!r} is not built ahead of time; expected tensorrt-rtx "
            "(the others load the bundle's ONNX files as they are)"
        )
    if engine == "tensorrt":
        _refuse_tensorrt()
    try:
        flavour = load_flavour(engine)
    except EngineUnavailableError as error:
        raise EdgelungError(str(error)) from error
    if target is None:
        raise EdgelungError(
            f"--engine {engine} needs --target: one or more of {', '.join(flavour.targets())}"
        )
    targets = check_targets(flavour, target.split(","))
    folder = out.with_name(f"{out.name}.engines")
    new_folder(folder, "engines")

    def build(bundle: "Bundle") -> None:
        from edgelung.core.terminal import progress
        from edgelung.engines.tensorrt.prebuilt import build_ahead, planned_builds

        with progress("build engines", len(planned_builds(bundle, targets))) as advance:
            entries = build_ahead(bundle, folder, flavour, targets, advance)
        _print_engines(entries, folder)
        _log_missing_engines(bundle, targets, entries)

    return build


def _refuse_tensorrt() -> None:
    """Say why full TensorRT cannot build ahead of time, and what this machine lacks for it."""
    from edgelung.core.errors import EdgelungError
    from edgelung.tools.doctor import examine

    needed = ("GPU", "driver", "TensorRT", "pycuda", "cuda-bindings")
    lacking = [f.what for f in examine() if f.what in needed and f.state != "ok"]
    here = f"this machine lacks {', '.join(lacking)}" if lacking else "nothing is missing here"
    raise EdgelungError(
        "TensorRT builds its engines on the GPU that runs them, at the first `edgelung infer "
        f"--engine tensorrt`; {here}. Ahead of time, without that GPU, --engine tensorrt-rtx "
        "--target sm_89 builds them"
    )


def _log_missing_engines(
    bundle: "Bundle", targets: list[str], engines: list["PrebuiltEngine"]
) -> None:
    """Log a line for each variant that got no engine, with the reason."""
    built = {(engine.variant, engine.target) for engine in engines}
    for variant in bundle.variants.values():
        if not variant.passed:
            verdict = variant.gate.verdict
            logger.info("no engine of %s: its gate says %s", variant.precision, verdict)
            continue
        for target in targets:
            if (variant.precision, target) not in built:
                logger.info("no engine of %s for %s, which has no FP8", variant.precision, target)


def _print_engines(engines: list["PrebuiltEngine"], folder: Path) -> None:
    from rich.table import Table

    from edgelung.core.terminal import err

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


def _print_table(variants: dict[str, "VariantEntry"], folder: Path) -> None:
    from rich.table import Table

    from edgelung.core.terminal import out

    table = Table(
        "variant", "for", "MB", "gate", "agreement", "test balanced acc.", "test ECE", "tiles/s"
    )
    for name, entry in variants.items():
        test = entry.test
        table.add_row(
            name,
            entry.meant_for,
            f"{entry.bytes / 1e6:.1f}",
            entry.gate.verdict,
            _figure(entry.gate.agreement),
            _figure(test.balanced_accuracy if test else None),
            _figure(test.expected_calibration_error if test else None),
            ", ".join(f"{k} {v:.0f}" for k, v in entry.tiles_per_second.items()),
        )
    out().print(table)
    out().print(f"bundle  {folder}\nreport  {folder / 'report.html'}", markup=False)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _print_sensitivity(ranking: "Sensitivity | None", most: int = 5) -> None:
    from edgelung.core.terminal import out

    if ranking:
        worst = ", ".join(f"{p.name} {p.alone:.1e}" for p in ranking.linears[:most])
        out().print(
            f"most sensitive to INT8, of {len(ranking.linears)} parts (divergence in nats; "
            f"all together {ranking.everything:.1e}): {worst}",
            markup=False,
        )
