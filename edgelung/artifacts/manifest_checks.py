"""Do the parts of a bundle's manifest belong together?"""

from pathlib import Path

from edgelung.artifacts.bundle_files import MANIFEST
from edgelung.artifacts.manifest import BundleManifest, VariantEntry
from edgelung.core.class_names import check_class_names
from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.precision import FULL_PRECISION, Precision
from edgelung.tiles.reader import MAX_BYTES as MAX_TILE_BYTES

MAX_GOLDEN_PIXELS = 1 << 28  # of all golden tiles, which are in memory at once


def known_variants(manifest: BundleManifest) -> dict[Precision, VariantEntry]:
    """The variants without those of a newer edgelung, which may know more precisions."""
    known = {str(precision) for precision in Precision}
    return {Precision(name): entry for name, entry in manifest.variants.items() if name in known}


def check_content(folder: Path, manifest: BundleManifest, size: int) -> None:
    """Raise EdgelungError if the parts of the manifest contradict each other."""
    names, variants = manifest.classes, known_variants(manifest)
    if FULL_PRECISION not in variants or not manifest.golden:
        raise EdgelungError(
            f"{folder} is no complete bundle: expected an {FULL_PRECISION} variant and golden "
            "tiles; export it again"
        )
    if not all(names) or len(set(names)) != len(names) or len(names) < 2:
        raise EdgelungError(
            f"{folder / MANIFEST} has the classes {one_line(ascii(names))}; expected two or more "
            "different names"
        )
    try:
        check_class_names(names)
    except ValueError as error:
        raise EdgelungError(
            f"{folder / MANIFEST}: {error}. Rename the class folders, then train and export again"
        ) from error
    for tile in manifest.golden:
        for precision in variants:
            if len(tile.probabilities.get(precision, ())) != len(names):
                raise EdgelungError(
                    f"{folder}: golden tile {one_line(tile.file)} does not hold {len(names)} "
                    f"probabilities for {precision}; export the bundle again"
                )
            if variants[precision].known is not None and precision not in tile.ood:
                raise EdgelungError(
                    f"{folder}: golden tile {one_line(tile.file)} has no score for {precision}; "
                    "export the bundle again"
                )
    for precision, entry in variants.items():
        if entry.known is not None and manifest.known is None:
            raise EdgelungError(
                f"{folder / MANIFEST}: {precision} has a threshold for a score that the bundle "
                "does not have; export the bundle again"
            )
        if (entry.early_exit is not None) != precision.about.early_exit:
            raise EdgelungError(
                f"{folder / MANIFEST}: {precision} has an early exit where it should have none, or "
                "none where it should have one; export the bundle again"
            )
        if entry.early_exit is not None and (manifest.known is None or entry.known is None):
            raise EdgelungError(
                f"{folder / MANIFEST}: {precision} has an early exit but no score; export the "
                "bundle again"
            )
    graphs = [entry.file for entry in variants.values()]
    graphs += [entry.early_exit.file for entry in variants.values() if entry.early_exit]
    if len(set(graphs)) < len(graphs):
        raise EdgelungError(
            f"{folder / MANIFEST}: two graphs are one file, and a file has one role; export the "
            "bundle again"
        )
    used = {*graphs, *(entry.file for entry in manifest.variants.values())}
    used |= {entry.file for entry in manifest.golden}
    if unlisted := sorted(used - set(manifest.files)):
        raise EdgelungError(f"{folder}: {one_line(unlisted[0])} has no hash; export it again")
    _check_golden(folder, manifest, size)


def _check_golden(folder: Path, manifest: BundleManifest, size: int) -> None:
    """Raise EdgelungError for golden tiles that need more memory than a check is worth."""
    pixels = len(manifest.golden) * size**2
    largest = max(manifest.files[entry.file].bytes for entry in manifest.golden)
    if pixels > MAX_GOLDEN_PIXELS or largest > MAX_TILE_BYTES:
        raise EdgelungError(
            f"{folder} has golden tiles of {pixels:,} pixels, files of up to {largest:,} bytes; "
            f"expected at most {MAX_GOLDEN_PIXELS:,} and {MAX_TILE_BYTES:,}. Export it again"
        )
