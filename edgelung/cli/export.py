"""`edgelung export`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgelung.cli.command import print_next, report
from edgelung.cli.options import (
    INPUT,
    OUTPUT,
    TileUmOption,
    chosen,
    engine_name,
    named_path,
    training_extra,
)
from edgelung.cli.target import TargetLatencyOption, TargetSpeedOption
from edgelung.cli.triton import (
    TritonOption,
    TritonPrecisionOption,
    TritonTrustOption,
    TritonUnsignedOption,
)
from edgelung.core.precision import Precision
from edgelung.engines.names import EngineName

if TYPE_CHECKING:
    from edgelung.artifacts.bundle import Bundle
    from edgelung.artifacts.manifest import BundleManifest, EarlyExit, Sensitivity

VARIANTS, JUDGING, AHEAD = "Variants", "Calibration and gate", "Engines ahead of time"


def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder that `edgelung train` wrote.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", rich_help_panel=OUTPUT, help="New bundle folder to write."),
    ] = None,
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
    early_exit: Annotated[
        bool,
        typer.Option(
            "--early-exit",
            rich_help_panel=VARIANTS,
            help="With --int8 (for CPUs) or --fp16 (for GPUs): add the same variant with an early "
            "exit. Tiles that the first blocks are sure of skip the others.",
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
    tile_um: TileUmOption = None,
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
            help="Validation tiles that calibrate INT8 and early exits, in whole groups.",
        ),
    ] = 512,
    known: Annotated[
        float,
        typer.Option(
            min=0.5,
            max=1.0,
            metavar="P",
            rich_help_panel=JUDGING,
            help="Share of the validation tiles that the model shall know; `infer` reports tiles "
            "that are further from the training tiles as unknown.",
        ),
    ] = 0.99,
    recalibrate: Annotated[
        Path | None,
        typer.Option(
            parser=named_path,
            metavar="TILES",
            rich_help_panel=JUDGING,
            help="Fit the confidence (temperature) on half of the groups of a site's labelled "
            "tiles, and measure it on the other half.  [default: on the validation tiles]",
        ),
    ] = None,
    recalibrate_groups: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            rich_help_panel=JUDGING,
            help="With --recalibrate: source of each tile, as --groups of `edgelung evaluate`.",
        ),
    ] = None,
    cross_validation: Annotated[
        Path | None,
        typer.Option(
            parser=named_path,
            metavar="FOLDER",
            rich_help_panel=INPUT,
            help="Cross-validation (`edgelung train --folds`) whose figures the model card shall "
            "show.",
        ),
    ] = None,
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
    target_latency: TargetLatencyOption = None,
    target_speed: TargetSpeedOption = None,
    engine: Annotated[
        EngineName | None,
        typer.Option(
            parser=engine_name,
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
    sign: Annotated[
        Path | None,
        typer.Option(
            metavar="KEY",
            rich_help_panel=OUTPUT,
            help="Sign the bundle, and the engines of --engine, with this private key (PEM); see "
            "`edgelung sign`.",
        ),
    ] = None,
    wsinfer: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=OUTPUT,
            help="Also write a model folder for WSInfer and its QuPath extension. Needs --tile-um, "
            "here or in `edgelung train`.",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", rich_help_panel=OUTPUT, help="Print bundle.json on standard output."
        ),
    ] = False,
    triton: TritonOption = None,
    precision: TritonPrecisionOption = None,
    trust: TritonTrustOption = None,
    allow_unsigned: TritonUnsignedOption = False,
    *,
    context: typer.Context,
) -> None:
    """Which variants of a run are as good as full precision?

    Writes a bundle with the full-precision (FP32) model and the variants that the options add. An
    accuracy gate compares each variant with full precision. Warns if full precision itself should
    not be used. Exit code 4: a variant did not pass its gate, or none reaches the target.

    With --triton, writes a model repository for Triton Inference Server too, or only that if RUN is
    a finished bundle.
    """
    from edgelung.artifacts.run import RunFolder
    from edgelung.cli.ahead import build_engines, plan_engines
    from edgelung.cli.sign import read_signing_key, sign_folders
    from edgelung.cli.target import goal_of, report_target
    from edgelung.cli.triton import check_run_options, from_finished_bundle, is_bundle, write_triton
    from edgelung.cli.wsinfer import check_wsinfer, write_wsinfer
    from edgelung.core.errors import ExitCode

    if is_bundle(run):
        from_finished_bundle(context, run, triton, chosen(precision), trust, allow_unsigned)
        return
    out = check_run_options(context, run, out, triton)
    _check_variants(fp16=fp16, int8=int8, qat=qat, early_exit=early_exit)
    _check_site(recalibrate, recalibrate_groups)
    RunFolder(run).check_one_model()
    ahead = plan_engines(engine, target, out)  # refused before the work, not after
    if wsinfer:
        check_wsinfer(wsinfer, out, run, tile_um)
    key = read_signing_key(sign) if sign else None
    asked = _precisions(fp16=fp16, int8=int8, fp8=fp8, early_exit=early_exit)
    with training_extra("export"):
        from edgelung.export.build import export_run
        from edgelung.export.recalibrate import SiteTiles

    bundle = export_run(
        run,
        out,
        precisions=asked,
        qat=qat,
        data=data,
        known=known,
        calibration=calibration,
        calibration_tiles=calibration_tiles,
        strict=strict,
        tile_um=tile_um,
        site=SiteTiles(recalibrate, recalibrate_groups) if recalibrate else None,
        cross_validation=cross_validation,
        goal=goal_of(target_latency, target_speed),
    )
    if wsinfer:
        write_wsinfer(wsinfer, run, bundle, data)
    if ahead:
        build_engines(ahead, bundle)
    if key:
        sign_folders([out, *([ahead.folder] if ahead else [])], key)
    if triton:
        write_triton(triton, out, chosen(precision))
    _print_bundle(bundle, out, as_json)
    is_fast = report_target(bundle.manifest)
    if not is_fast or not (allow_drop or _passed(bundle, asked)):
        raise typer.Exit(ExitCode.GATE)


def _precisions(*, early_exit: bool, **asked: bool) -> frozenset[Precision]:
    """The variants whose option is given, with `early_exit` also those made from them."""
    named = {Precision[name.upper()] for name, given in asked.items() if given}
    made = {precision for precision in Precision if precision.about.whole in named}
    return frozenset(named | made if early_exit else named)


def _passed(bundle: "Bundle", asked: frozenset[Precision]) -> bool:
    """True if all variants that were asked for are there and passed their gate."""
    return asked <= bundle.variants.keys() and all(v.passed for v in bundle.variants.values())


def _print_bundle(bundle: "Bundle", out: Path, as_json: bool) -> None:
    """Print what was made, and why it should not be trusted or what comes next."""
    from edgelung.core.typed_json import plain

    if as_json:
        print(json.dumps(plain(bundle.manifest), indent=2))
    else:
        print_table(bundle.manifest, out)
        _print_sensitivity(bundle.manifest.sensitivity)
    if _report_concerns(bundle.manifest) and not as_json:
        print_next("infer", "FOLDER", "--model", out)


def _check_variants(*, fp16: bool, int8: bool, qat: bool, early_exit: bool) -> None:
    """Refuse options of a variant without it."""
    from edgelung.core.errors import EdgelungError

    if qat and not int8:
        raise EdgelungError("--qat trains the INT8 variant; it needs --int8")
    if early_exit and not (int8 or fp16):
        raise EdgelungError("--early-exit is made from INT8 or FP16; it needs --int8 or --fp16")


def _check_site(tiles: Path | None, groups: Path | None) -> None:
    from edgelung.core.errors import EdgelungError

    if groups and not tiles:
        raise EdgelungError("--recalibrate-groups names groups of tiles; it needs --recalibrate")


def _report_concerns(manifest: "BundleManifest") -> bool:
    """Say why the model should not be trusted; False if it should not be used at all."""
    from edgelung.evaluation.concerns import bundle_concerns

    concerns = bundle_concerns(manifest)
    for concern in concerns:
        report("%s", concern.text)
    return not any(concern.do_not_use for concern in concerns)


def early_exit_in_words(early: "EarlyExit") -> str:
    """How many tiles leave early, and in how many groups that changes labels."""
    on = "test" if "test" in early.left else "gate"
    share, found = early.left[on], early.groups[on]
    return (
        f"{100 * share.share:.0f} % of the {on} tiles leave after block {early.block}; "
        f"{found.lost} of {found.groups} groups change more than a tenth of their labels "
        f"(of all sources at most {100 * found.bound:.1f} %)"
    )


def print_table(manifest: "BundleManifest", folder: Path) -> None:
    """Print a row per variant, the verdict first; nothing is cut on 80 columns."""
    from rich.table import Column, Table

    from edgelung.artifacts.bundle import REPORT
    from edgelung.core.terminal import out
    from edgelung.evaluation.concerns import bundle_concerns

    useless = any(concern.do_not_use for concern in bundle_concerns(manifest))
    table = Table(
        *(Column(name, no_wrap=True) for name in ("variant", "gate")),  # others shrink first
        *("balanced\nacc., test", "agree-\nment", "tiles/s", "MB", "for"),
        caption="balanced accuracy on the test set; agreement with full precision in the gate",
    )
    for name, entry in manifest.variants.items():
        test, verdict = entry.test, entry.gate.verdict
        table.add_row(
            name,
            "do not use" if useless and verdict == "reference" else verdict,
            _figure(test.balanced_accuracy if test else None),
            _figure(entry.gate.agreement),
            "\n".join(f"{engine} {speed:.0f}" for engine, speed in entry.tiles_per_second.items()),
            f"{(entry.bytes + (entry.early_exit.bytes if entry.early_exit else 0)) / 1e6:.1f}",
            entry.meant_for,
        )
    out().print(table)
    if text := _known(manifest):
        out().print(text)
    for name, entry in manifest.variants.items():
        if entry.early_exit:
            out().print(f"{name}: {early_exit_in_words(entry.early_exit)}")
    out().print(f"bundle  {folder}\nreport  {folder / REPORT}")


def _known(manifest: "BundleManifest") -> str:
    """What the bundle knows of unknown tissue, in a sentence; '' for one that cannot tell."""
    from edgelung.core.precision import FULL_PRECISION
    from edgelung.evaluation.intervals import written

    variant = manifest.variants[FULL_PRECISION].known
    if variant is None or (test := variant.known_on_test) is None:
        return ""
    marked, low, high = 1 - test.share, 1 - test.interval[1], 1 - test.interval[0]
    return (
        f"unknown {100 * marked:.2f} % of the test tiles are marked as unknown "
        f"({written((low, high))}, {test.groups} groups)"
    )


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _print_sensitivity(ranking: "Sensitivity | None", most: int = 5) -> None:
    from edgelung.core.terminal import out

    if ranking:
        worst = ", ".join(f"{p.name} {p.alone:.1e}" for p in ranking.linears[:most])
        out().print(
            f"INT8 costs most accuracy in these of {len(ranking.linears)} layers (divergence of "
            f"the output in nats if only this layer is INT8; all layers {ranking.everything:.1e}): "
            f"{worst}",
            markup=False,
        )
