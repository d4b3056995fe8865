"""`edgelung export`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgelung.artifacts.bundle import Bundle, Sensitivity, VariantEntry
    from edgelung.engines.tensorrt.prebuilt import PrebuiltEngine


def export(
    run: Annotated[Path, typer.Argument(help="Run folder that `edgelung train` wrote.")],
    out: Annotated[Path, typer.Option(help="Bundle folder to write; must be new.")],
    fp16: Annotated[bool, typer.Option("--fp16", help="Add a typed FP16 variant.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Add an INT8 variant, calibrated on validation tiles.")
    ] = False,
    fp8: Annotated[
        bool,
        typer.Option("--fp8", help="Add an FP8 (E4M3) variant, calibrated alike, for new GPUs."),
    ] = False,
    qat: Annotated[
        bool,
        typer.Option(
            "--qat",
            help="Where INT8 does not pass its gate, train it on the training tiles.",
        ),
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="The training tiles, if the folder has moved.")
    ] = None,
    outside: Annotated[
        Path | None,
        typer.Option(help="Tiles of none of the classes: report how sure the model is of them."),
    ] = None,
    calibration: Annotated[
        str, typer.Option(help="auto, min-max, percentile, entropy or mse.", metavar="METHOD")
    ] = "auto",
    calibration_tiles: Annotated[
        int, typer.Option(min=1, help="Validation tiles that calibrate INT8, whole groups.")
    ] = 512,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Ask for 99.9 % of full precision's balanced accuracy."),
    ] = False,
    engine: Annotated[
        str | None,
        typer.Option(help="Also build engines ahead of time: tensorrt-rtx (needs no GPU)."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="With --engine: architectures to build for, 'sm_86,sm_89'."),
    ] = None,
    allow_drop: Annotated[
        bool, typer.Option("--allow-drop", help="Exit 0 even if a variant did not pass its gate.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print bundle.json on standard output.")
    ] = False,
) -> None:
    """Write a verified bundle of a run: full precision, and FP16 and INT8 with their evidence."""
    from edgelung.core.errors import EdgelungError, ExitCode
    from edgelung.core.terminal import note
    from edgelung.core.typed_json import plain

    if qat and not int8:
        raise EdgelungError("--qat trains the INT8 variant; it needs --int8")
    ahead = _ahead_of_time(engine, target, out)  # refused before the work, not after

    try:
        from edgelung.export.build import export_run
    except ModuleNotFoundError as error:
        raise EdgelungError(
            f"export needs {error.name}, which is not installed: pip install 'edgelung[train]'"
        ) from error

    bundle = export_run(
        run,
        out,
        half=fp16,
        int8=int8,
        fp8=fp8,
        qat=qat,
        data=data,
        outside=outside,
        calibration=calibration,
        calibration_tiles=calibration_tiles,
        strict=strict,
        say=note,
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
    """What builds the engines of the finished bundle into `<out>.engines`, where asked for."""
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
        from edgelung.tools.doctor import examine

        needed = ("GPU", "driver", "TensorRT", "pycuda", "cuda-bindings")
        lacking = [f.what for f in examine() if f.what in needed and f.state != "ok"]
        here = f"this machine lacks {', '.join(lacking)}" if lacking else "nothing is missing here"
        raise EdgelungError(
            "TensorRT builds its engines on the GPU that runs them, at the first `edgelung infer "
            f"--engine tensorrt`; {here}. Ahead of time, without that GPU, --engine tensorrt-rtx "
            "--target sm_89 builds them"
        )
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
        from edgelung.core.terminal import note, progress
        from edgelung.engines.tensorrt.prebuilt import build_ahead, planned_builds

        with progress("build engines", len(planned_builds(bundle, targets))) as advance:
            entries = build_ahead(bundle, folder, flavour, targets, advance)
        _print_engines(entries, folder)
        built = {(entry.variant, entry.target) for entry in entries}
        for variant in bundle.variants.values():
            if not variant.passed:
                note(f"no engine of {variant.precision}: its gate says {variant.gate.verdict}")
                continue
            for target in targets:
                if (variant.precision, target) not in built:
                    note(f"no engine of {variant.precision} for {target}, which has no FP8")

    return build


def _print_engines(engines: list["PrebuiltEngine"], folder: Path) -> None:
    from rich.table import Table

    from edgelung.core.terminal import err, note

    table = Table("engine", "MB", "batch", "linears by type")
    for engine in engines:
        types = ", ".join(f"{n} {name}" for name, n in engine.contents.types.items())
        table.add_row(engine.file, f"{engine.bytes / 1e6:.1f}", engine.profile, types)
    err.print(table)
    note(
        f"engines {folder}: programs for the GPU, outside the bundle; run them with the "
        f"TensorRT-RTX they were built by ({engines[0].version}): "
        f"edgelung infer --engine tensorrt-rtx --prebuilt {folder}"
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
    out.print(table)
    out.print(f"bundle  {folder}\nreport  {folder / 'report.html'}", markup=False)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _print_sensitivity(ranking: "Sensitivity | None", most: int = 5) -> None:
    from edgelung.core.terminal import out

    if ranking:
        worst = ", ".join(f"{p.name} {p.alone:.1e}" for p in ranking.linears[:most])
        out.print(
            f"most sensitive to INT8, of {len(ranking.linears)} parts (divergence in nats; "
            f"all together {ranking.everything:.1e}): {worst}",
            markup=False,
        )
