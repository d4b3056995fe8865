"""`edgelung export --target-latency` and `--target-speed`: the variant that is fast enough."""

from typing import TYPE_CHECKING, Annotated

import typer

from edgelung.cli.command import report
from edgelung.core.precision import Precision

if TYPE_CHECKING:
    from edgelung.artifacts.manifest import BundleManifest, Target
    from edgelung.export.target import Goal

PANEL = "Speed that is needed"

TargetLatencyOption = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        metavar="MS",
        rich_help_panel=PANEL,
        help="Let --precision auto take, on CPUs, the variant that agrees best with full precision "
        "among those that passed their gate and need at most MS milliseconds for a single tile "
        "here (90th percentile, all cores). Exit code 4 if none does.",
    ),
]
TargetSpeedOption = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        metavar="X",
        rich_help_panel=PANEL,
        help="As --target-latency, for at least X tiles per second in batches of 16. Both measure "
        "the network alone, without reading files.",
    ),
]


def goal_of(latency_ms: float | None, tiles_per_second: float | None) -> "Goal | None":
    """What the options ask for; None if neither is given."""
    from edgelung.export.target import Goal

    if latency_ms is None and tiles_per_second is None:
        return None
    return Goal(latency_ms, tiles_per_second)


def report_target(manifest: "BundleManifest") -> bool:
    """Say which variant was chosen for the target; False if none reaches it."""
    from msgspec import UNSET

    if manifest.target is UNSET:
        return True
    report("%s", target_in_words(manifest.target))
    return manifest.target.reached


def target_in_words(target: "Target") -> str:
    """The choice, or why there is none."""
    speed = target.measured[target.variant]
    took = f"{speed.tiles_per_second:g} tiles/s"
    if speed.latency_ms is not None:
        took += f", {speed.latency_ms:.2f} ms for a single tile"
    if target.reached:
        return (
            f"Target, {target.asked}: {target.variant} reaches it on this machine ({took}). "
            "--precision auto takes it on CPUs."
        )
    faster = Precision.INT8_EARLY_EXIT not in target.measured
    more = ", or add faster variants (--int8 --early-exit)" if faster else ""
    return (
        f"Target, {target.asked}: no variant that passed its gate reaches it on this machine. The "
        f"fastest is {target.variant} ({took}). --precision auto chooses as without a target. "
        f"Ask for less{more}."
    )
