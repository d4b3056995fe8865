"""`edgelung export --triton`: a model repository, beside a new bundle or from a finished one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgelung.cli.command import report
from edgelung.cli.options import Choice, choice_parser, named_path
from edgelung.core.errors import EdgelungError
from edgelung.core.precision import Precision

if TYPE_CHECKING:
    from edgelung.artifacts.trust import Trust

PANEL = "Triton"
OF_TRUST = ("--trust", "--allow-unsigned")
# Options of `export` for a finished bundle; all others are about making one.
OF_A_BUNDLE = ("--triton", "--precision", *OF_TRUST)

TritonOption = Annotated[
    Path | None,
    typer.Option(
        parser=named_path,
        metavar="FOLDER",
        rich_help_panel=PANEL,
        help="Write a model repository for Triton Inference Server into this new folder. RUN may "
        "then also be a finished bundle.",
    ),
]
TritonPrecisionOption = Annotated[
    Choice[Precision] | None,
    typer.Option(
        parser=choice_parser(Precision),
        metavar="NAME",
        rich_help_panel=PANEL,
        help="With --triton: variant that both models run.  [default: auto, one of those that "
        "passed their gate]",
    ),
]
TritonTrustOption = Annotated[
    Path | None,
    typer.Option(
        parser=named_path,
        metavar="KEY",
        rich_help_panel=PANEL,
        help="With --triton: take a finished bundle only if one of these keys signed it, or the "
        "starter: a public key (PEM), or a folder of them.  [default: the keys of edgelung.toml]",
    ),
]
TritonUnsignedOption = Annotated[
    bool,
    typer.Option(
        "--allow-unsigned",
        rich_help_panel=PANEL,
        help="With --triton: also take a finished bundle that is unsigned or signed by a key that "
        "is not trusted.",
    ),
]


def is_bundle(folder: Path) -> bool:
    """True if RUN of `export` is a finished bundle."""
    from edgelung.artifacts.bundle import MANIFEST

    return (folder / MANIFEST).is_file()


def from_finished_bundle(
    context: typer.Context,
    folder: Path,
    repository: Path | None,
    precision: Precision | None,
    trust: Path | None,
    allow_unsigned: bool,
) -> None:
    """Write the model repository of a bundle that is there already.

    Raises:
        EdgelungError: if another option of `export` is given, or the bundle is damaged or not
            trusted.
    """
    from edgelung.artifacts.trust import choose_trust

    if repository is None:
        raise EdgelungError(
            f"{folder} is a finished bundle; expected a run folder, or --triton FOLDER to make a "
            "model repository of the bundle"
        )
    if other := next((name for name in _given(context) if name not in OF_A_BUNDLE), ""):
        raise EdgelungError(
            f"{other} makes a bundle from a run, and {folder} is a finished bundle; leave {other} "
            "out, or name the run"
        )
    check_triton(repository, folder)
    write_triton(repository, folder, precision, choose_trust(trust, allow_unsigned))


def check_run_options(
    context: typer.Context, run: Path, out: Path | None, repository: Path | None
) -> Path:
    """Check --out, which a run needs, and the options of --triton. Returns --out."""
    if out is None and repository is not None:
        raise EdgelungError(
            f"{run} is no finished bundle (no bundle.json in it); expected one, or a run folder "
            "and --out BUNDLE"
        )
    if out is None:
        raise EdgelungError(
            "missing option '--out' (New bundle folder to write); see `edgelung export --help`"
        )
    given = _given(context)
    if "--precision" in given and repository is None:
        raise EdgelungError("--precision is for the models of --triton; it needs --triton FOLDER")
    if other := next((name for name in given if name in OF_TRUST), ""):
        raise EdgelungError(f"{other} is about a finished bundle; a run has no signature")
    if repository is not None:
        check_triton(repository, out)
    return out


def _given(context: typer.Context) -> list[str]:
    """The options on the command line."""
    sources = {
        parameter.opts[0]: context.get_parameter_source(parameter.name or "")
        for parameter in context.command.params
        if parameter.param_type_name == "option"
    }
    return [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]


def check_triton(repository: Path, bundle: Path) -> None:
    """Check --triton before the work: a new folder, and neither lies in the other."""
    from edgelung.core.files import new_folder

    inner, outer = repository.absolute(), bundle.absolute()
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise EdgelungError(
            f"--triton {repository} and the bundle {bundle} must not be in each other; name "
            "another folder for --triton"
        )
    new_folder(repository, "model repository", option="--triton")


def write_triton(
    repository: Path, folder: Path, precision: Precision | None, trust: "Trust | None" = None
) -> None:
    """Write the model repository of a bundle, and report what its two models run.

    `folder`: the bundle, signed if it is to be. `trust`: None for one that this command made.
    """
    from edgelung import RESEARCH_USE_ONLY
    from edgelung.artifacts.bundle import open_bundle
    from edgelung.artifacts.trust import OWN_WORK
    from edgelung.cli.model import warn_of_gate
    from edgelung.export.triton import FILES_MODEL, TILES_MODEL, write_triton_repository

    bundle = open_bundle(folder, trust or OWN_WORK)
    warn_of_gate(bundle, precision)
    variant = write_triton_repository(repository, bundle, precision)
    if precision not in (None, variant.precision):
        report(
            "%s consists of two graphs: %s runs %s instead",
            precision,
            TILES_MODEL,
            variant.precision,
        )
    report(
        "%s: model %s for image files (precision %s), model %s for tiles (%s)",
        *(repository, FILES_MODEL, precision or "auto", TILES_MODEL, variant.precision),
    )
    report(RESEARCH_USE_ONLY)
