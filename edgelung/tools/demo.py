"""`edgelung demo`: the whole chain as a user runs it; every step is a command that is printed.

train ─► export ─► infer on the test tiles, in every CPU engine and precision ─► one table, one JSON
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgelung.artifacts.bundle import REPORT, open_bundle
from edgelung.artifacts.predictions import read_predictions
from edgelung.artifacts.run import RunFolder
from edgelung.artifacts.summary import Summary, read_summary
from edgelung.artifacts.trust import OWN_WORK
from edgelung.core import typed_json
from edgelung.core.config import ENVIRONMENT, OFF
from edgelung.core.errors import ExitCode
from edgelung.core.precision import Precision
from edgelung.core.system import describe_machine, saturates_int8
from edgelung.core.terminal import err, out
from edgelung.engines.names import EngineName
from edgelung.tools.demo_figures import AlsoFigures, DemoFigures, Labels, collect_figures, show

# Of the synthetic tiles: the gate needs the others, about 200 a class.
CALIBRATION_TILES = 240


def infer_runs() -> list[tuple[EngineName, Precision]]:
    """Engine and precision of each `infer` over the test tiles: those that run on this CPU."""
    runs = [
        (EngineName.ONNXRUNTIME, Precision.FP32),
        (EngineName.OPENVINO, Precision.FP32),
        (EngineName.ONNXRUNTIME, Precision.INT8),
    ]
    return runs if saturates_int8() else [*runs, (EngineName.OPENVINO, Precision.INT8)]


@dataclass(frozen=True)
class DemoOptions:
    """What the demo runs on.

    Attributes:
        data: folder of labelled tiles.
        groups: CSV with path and group or cluster; None: `edgelung train` finds near copies.
        recipe: of `edgelung train`.
        calibration_tiles: of `edgelung export`; None: its default.
        also: further folders to predict.
    """

    data: Path
    groups: Path | None
    recipe: str
    calibration_tiles: int | None = None
    also: Sequence[Path] = ()


@dataclass
class Steps:
    """Runs `edgelung` commands, prints each one and remembers how long it took.

    `quiet` keeps standard output free: all that is printed goes to standard error.
    """

    quiet: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, name: str, *words: object, allowed: Sequence[ExitCode] = (ExitCode.OK,)) -> None:
        """Run one command; an exit code that is not allowed ends this program with the same."""
        command = [str(word) for word in words]
        console = err() if self.quiet else out()
        console.print(f"\n$ edgelung {' '.join(command)}")
        environment = os.environ | {ENVIRONMENT: OFF}  # the same figures whatever the defaults
        start = time.perf_counter()
        code = subprocess.run(
            [sys.executable, "-m", "edgelung", *command],
            env=environment,
            stdout=sys.stderr if self.quiet else None,
            check=False,
        ).returncode
        self.seconds[name] = round(time.perf_counter() - start, 1)
        if code not in allowed:
            raise SystemExit(code)  # the command has said why


def run_demo(options: DemoOptions, folder: Path, *, quiet: bool = False) -> DemoFigures:
    """Run the chain in `folder`; a variant that does not pass its gate is shown, not an error.

    Args:
        options: tiles, groups and recipe.
        folder: an existing folder for the run, the bundle, the rows and results.json.
        quiet: print nothing on standard output.
    """
    run, bundle = folder / "run", folder / "bundle"
    steps = Steps(quiet=quiet)
    groups = ["--groups", options.groups] if options.groups else []
    steps.run("train", "train", options.data, "--out", run, "--recipe", options.recipe, *groups)
    few = ["--calibration-tiles", options.calibration_tiles] if options.calibration_tiles else []
    gate = (ExitCode.OK, ExitCode.GATE)
    steps.run("export", "export", run, "--out", bundle, "--fp16", "--int8", *few, allowed=gate)

    def infer(name: str, *words: object, allowed: Sequence[ExitCode] = (ExitCode.OK,)) -> Summary:
        rows = folder / f"{name}.csv"
        # Keys that this machine trusts did not sign the bundle that was just made.
        words = ("infer", *words, "--model", bundle, "--allow-unsigned", "--out", rows)
        words += ("--unknown", "keep")  # the accuracy is of all test tiles
        steps.run(f"infer {name}", *words, allowed=allowed)
        return read_summary(rows.with_suffix(".summary.json"))

    results: list[tuple[Summary, Labels]] = []
    for engine, precision in infer_runs():
        name = f"{engine}-{precision}"
        test_tiles = [options.data, "--files", RunFolder(run).split_path, "--subset", "test"]
        summary = infer(name, *test_tiles, "--engine", engine, "--precision", precision)
        rows = read_predictions(folder / f"{name}.csv").rows
        results.append((summary, {row.path: row.label for row in rows}))
    also = infer("also", *options.also, "--verify", allowed=gate) if options.also else None

    figures = collect_figures(
        RunFolder(run),
        open_bundle(bundle, OWN_WORK),
        results,
        also=None if also is None else AlsoFigures.of(also),
        seconds=steps.seconds,
        machine=describe_machine(),
    )
    path = folder / "results.json"
    typed_json.write(path, figures)
    if not quiet:
        show(figures, has_groups=options.groups is not None)
        reports = f"{RunFolder(run).report_path}\n          {bundle / REPORT}"
        out().print(f"reports   {reports}\nfigures   {path}")
    return figures
