"""`edgelung export --wsinfer`: a model folder for QuPath, beside the finished bundle."""

from pathlib import Path
from typing import TYPE_CHECKING

from edgelung.cli.command import report
from edgelung.cli.options import training_extra
from edgelung.core.errors import EdgelungError

if TYPE_CHECKING:
    from edgelung.artifacts.bundle import Bundle


def check_wsinfer(folder: Path, bundle: Path, run: Path, tile_um: float | None) -> None:
    """Check --wsinfer before the bundle is made.

    Raises:
        EdgelungError: if the folder is there, a package of training is missing, or nobody stated
            how many micrometres a training tile shows.
    """
    from edgelung.artifacts.run import RunFolder
    from edgelung.core.files import new_folder

    if folder.absolute().is_relative_to(bundle.absolute()):
        raise EdgelungError(
            f"--wsinfer {folder} lies in the bundle, which may hold nothing else; name another "
            "folder"
        )
    new_folder(folder, "model", option="--wsinfer")
    with training_extra("export --wsinfer"):
        import edgelung.export.wsinfer  # noqa: F401
        from edgelung.export.scale import resolve_scale
    if resolve_scale(RunFolder(run).read_config(), tile_um) is None:
        raise EdgelungError(
            f"--wsinfer needs the physical size of a tile, which run {run} does not state; add "
            "--tile-um U, the side of a training tile in micrometres"
        )


def write_wsinfer(folder: Path, run: Path, bundle: "Bundle", data: Path | None) -> None:
    """Write the model folder and report how far its predictions are from the bundle's."""
    from edgelung.artifacts.run import RunFolder
    from edgelung.export.wsinfer import write_wsinfer_folder

    agreement = write_wsinfer_folder(folder, RunFolder(run), bundle, data)
    report(
        "%s: as WSInfer reads tiles, %.1f %% of %d %s tiles get the label of fp32, and "
        "probabilities differ by %.2g on average and %.2g at most",
        folder,
        100 * agreement.wsinfer.same_label,
        agreement.tiles,
        agreement.subset,
        agreement.wsinfer.mean_probability_difference,
        agreement.wsinfer.largest_probability_difference,
    )
