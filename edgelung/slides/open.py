"""Path → slides, each with the reader that gives its pixels right.

Tiled TIFF is read directly, and a few tiles are compared with OpenSlide; where they differ, and for
every other format, OpenSlide reads. The checks of a TIFF's structure run before any library sees
the file: they bound time and memory for files made to harm.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from edgelung.core.errors import EdgelungError, one_line
from edgelung.slides.agreement import contradicting_levels
from edgelung.slides.base import Slide
from edgelung.slides.compare import DIFFERENT, compare, telling_tiles
from edgelung.slides.direct import DirectSlide
from edgelung.slides.file_bytes import FileBytes
from edgelung.slides.levels import (
    KindError,
    OrdinaryError,
    aperio_scale,
    find_levels,
    is_8_bit_rgb,
    read_chain,
    resolution_scale,
)
from edgelung.slides.libraries import need_openslide
from edgelung.slides.ome import is_ome, read_scenes
from edgelung.slides.openslide_reader import OpenSlideSlide, SharedHandle, open_by_openslide
from edgelung.tiles.errors import Status, TileError
from edgelung.tiles.files import looks_like
from edgelung.tiles.tiff_directory import TIFF_MARKS, Directory
from edgelung.tiles.tiff_layout import Layout, check_slide_structure
from edgelung.tiles.tiff_pages import maker_of

MAX_FOLDER_FILES = 4096  # of a DICOM folder
_DESCRIPTION, _TILE_WIDTH = 270, 322
_NDPI = ".ndpi"  # beyond 4 GiB its offsets are Hamamatsu's own, which OpenSlide knows
_BY_OPENSLIDE = (".ndpi", ".scn", ".bif")  # TIFF with a layout of the scanner's own
_OLYMPUS = ".vsi"  # a TIFF of small pictures; the slide is in other files
_MIRAX = ".mrxs"  # its file is an ordinary JPEG beside the folder with the slide
_DAMAGE = (Status.CORRUPT, Status.TRUNCATED)


def open_slides(path: Path) -> list[Slide]:
    """Open a slide, or each scene of a file with several.

    Args:
        path: a file, or the folder of a DICOM slide.

    Raises:
        EdgelungError: it is no slide, is damaged, or needs what is not installed; in one line.
    """
    try:
        info = os.stat(path)
        if stat.S_ISDIR(info.st_mode):
            return _open_folder(path)
        file = FileBytes(path)
    except OSError as error:
        raise EdgelungError(
            f"{path} cannot be opened: {error.strerror or one_line(error)}; expected a slide"
        ) from None
    try:
        start = file[0:16]
        if not start:
            raise EdgelungError(f"{path} holds no bytes; expected a slide: copy it again")
        suffix = path.suffix.lower()
        if suffix == _OLYMPUS:
            _check_olympus(path)
        elif start[:4] in TIFF_MARKS and not (suffix == _NDPI and len(file) >= 2**32):
            slides = _open_tiff(file)
            if slides:
                return slides
        elif looks_like(start) and suffix not in (_MIRAX, _NDPI):
            raise EdgelungError(
                f"{path} is an ordinary image, not a slide; run `edgelung infer` on its folder"
            )
    except TileError as error:
        file.close()
        raise _refusal(path, error) from None
    except BaseException:
        file.close()
        raise
    file.close()
    return [*open_by_openslide(path)]


def _refusal(path: Path, error: TileError) -> EdgelungError:
    """What a slide's TileError says to people: found, expected, what to do."""
    if error.status in _DAMAGE:
        advice = "the file is damaged or its copy is not complete: copy it again"
    elif error.status == Status.UNREADABLE:
        advice = "it cannot be read: is the drive connected?"
    elif isinstance(error, OrdinaryError):
        advice = "expected a slide; run `edgelung infer` on the folder of ordinary tiles"
    else:
        advice = "expected a tiled 8-bit RGB slide: export it again as SVS, pyramidal TIFF or DICOM"
    return EdgelungError(f"{path}: {error.reason}; {advice}")


def _open_tiff(file: FileBytes) -> list[Slide]:
    """The slides of a TIFF that is read directly; none where OpenSlide is to read it.

    Raises TileError.
    """
    chain = read_chain(file)
    maker = maker_of(chain)
    description = chain[0].text(_DESCRIPTION)
    if maker not in ("", "Aperio") or file.path.suffix.lower() in _BY_OPENSLIDE:
        for page in chain:
            if page.integer(_TILE_WIDTH, 0):
                check_slide_structure(page)
        return []
    if is_ome(description):
        return _open_scenes(file, chain, description)
    try:
        layouts = find_levels(chain)
    except KindError:
        if is_8_bit_rgb(chain[0]) and _openslide_opens(file.path):
            return []
        raise
    if layouts[0].kind.compression == "JPEG 2000" and _openslide_opens(file.path):
        return []
    is_aperio = maker == "Aperio"
    scale = aperio_scale(description) if is_aperio else resolution_scale(chain[0])
    name = "Aperio SVS" if is_aperio else "tiled TIFF"
    slide = DirectSlide(file, layouts, scale, describe(name, layouts))
    return [_checked(slide)]


def _open_scenes(file: FileBytes, chain: list[Directory], description: str) -> list[Slide]:
    """The scenes of an OME-TIFF."""
    slides: list[Slide] = []
    for number, scene in enumerate(read_scenes(chain, description)):
        own = FileBytes(file.path) if number else file  # each slide closes its own
        kind = describe("OME-TIFF", scene.layouts)
        slides.append(_checked(DirectSlide(own, scene.layouts, scene.scale, kind, scene.name)))
    return slides


def describe(name: str, layouts: Sequence[Layout]) -> str:
    """Format and reader in words."""
    compression = layouts[0].kind.compression
    stored = "uncompressed" if compression == "none" else compression
    return f"{name}; {stored} {'tiles' if layouts[0].tiled else 'strips'} read directly"


def _checked(slide: DirectSlide) -> Slide:
    """The slide, or the same read by OpenSlide where the pixels of both differ."""
    probe(slide)
    if left_out := contradicting_levels(slide):
        numbers = ", ".join(map(str, left_out))
        slide.kind += f", without level {numbers}, which shows something else than level 0"
        slide.leave_out(left_out)
    verdict = compare(slide)
    if verdict != DIFFERENT:
        slide.kind += f", {verdict}"
        return slide
    slide.close()
    note = "whose pixels differ from those of the direct reader"
    return OpenSlideSlide(slide.path, note, slide.scale, slide.scene)


def probe(slide: DirectSlide) -> None:
    """Decode a tile of each level, to know what its data allows.

    Raises:
        TileError: no tile of level 0 can be decoded, of those that were tried. Other levels without
            any are left out, and other damage is left to whoever reads the tile.
    """
    broken = []
    for number, segments in enumerate(slide.segments):
        failure: TileError | None = None
        for tile in telling_tiles(segments):
            try:
                segments.read(tile)
            except TileError as error:
                failure = error
                continue
            failure = None
            try:
                segments.read(tile, min(slide.eighths))
            except TileError:
                slide.only_full_size()
            break
        if failure is not None and number == 0:
            reason = f"none of its tiles can be decoded: {failure.reason}"
            raise TileError(failure.status, reason)
        if failure is not None:
            broken.append(number)
    slide.leave_out(broken)


def _openslide_opens(path: Path) -> bool:
    """Whether OpenSlide is installed and opens a file."""
    try:
        SharedHandle(path).close()
    except EdgelungError:
        return False
    return True


def _check_olympus(path: Path) -> None:
    """Raise EdgelungError for a VSI that OpenSlide would take for a TIFF: its small pictures."""
    vendor = need_openslide(str(path)).OpenSlide.detect_format(path)
    if vendor in (None, "generic-tiff"):
        raise EdgelungError(
            f"{path} is an Olympus slide, which the installed OpenSlide does not read; convert it "
            "to OME-TIFF or DICOM"
        )


def _open_folder(path: Path) -> list[Slide]:
    """The DICOM slides of a folder, one for each series."""
    library = need_openslide(str(path))
    names = sorted(entry.name for entry in os.scandir(path) if entry.is_file())
    if len(names) > MAX_FOLDER_FILES:
        raise EdgelungError(
            f"{path} holds {len(names)} files; expected a DICOM slide of at most {MAX_FOLDER_FILES}"
        )
    found: dict[str, OpenSlideSlide] = {}
    for name in names:
        if library.OpenSlide.detect_format(path / name) != "dicom":
            continue
        slide = OpenSlideSlide(path / name)
        series = slide.series or name
        if series in found:
            slide.close()
        else:
            slide.path = path
            found[series] = slide
    if not found:
        raise EdgelungError(
            f"{path} is a folder without a DICOM slide; expected a slide's file, or the folder of "
            "a DICOM slide"
        )
    if len(found) > 1:
        for series, slide in found.items():
            slide.scene = one_line(series, 80)
    return [*found.values()]
