"""Makes a large slide like those of Aperio's scanners, in flat memory.

    python benchmarks/slide_file.py TILES OUT.svs [--width W] [--height H]

TILES holds pictures of 768 px. The left half of the slide is covered with them, in a random order;
the right half is glass. Level 0, and levels of a quarter and of a sixteenth, are stored as JPEG
tiles of 256 px, 4:2:0, with 0.5 micrometres per pixel. 768 px are three of these tiles, so each
picture is encoded once and its bytes are written wherever it lies.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

PICTURE, SIDE = 768, 256  # pixels of a picture, and of a JPEG tile
MPP, OBJECTIVE = 0.5, 20
QUALITY = 80
GLASS = 242  # grey
FACTORS = (1, 4, 16)
ROW = PICTURE // SIDE  # JPEG tiles along a picture


@dataclass(frozen=True)
class Arrangement:
    """Which picture lies where on a slide of `width` × `height` pixels.

    Attributes:
        pictures: uint8 RGB (N, 768, 768, 3).
        places: index of a picture, (rows, columns); they cover the left `columns` × 768 pixels.
    """

    pictures: Pixels
    places: npt.NDArray[np.intp]
    width: int
    height: int

    @property
    def tissue_width(self) -> int:
        """Pixels from the left edge that are tissue."""
        return self.places.shape[1] * PICTURE


def arrange(folder: Path, width: int, height: int, seed: int = 0) -> Arrangement:
    """Cover half of a slide with the pictures below a folder, at random."""
    from PIL import Image

    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg"))
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    pictures = [pixels for pixels in pictures if pixels.shape == (PICTURE, PICTURE, 3)]
    if not pictures:
        raise SystemExit(f"{folder} holds no JPEG of {PICTURE} × {PICTURE} pixels")
    shape = (-(-height // PICTURE), round(width / 2 / PICTURE))
    places = np.random.default_rng(seed).integers(len(pictures), size=shape)
    return Arrangement(np.stack(pictures), places, width, height)


def write_slide(path: Path, slide: Arrangement) -> None:
    """Write the slide. Only one row of JPEG tiles of a lower level is in memory at a time."""
    import tifffile

    description = (
        f"Aperio Image Library v12.0.0\n{slide.width}x{slide.height} [0,0 "
        f"{slide.width}x{slide.height}] ({SIDE}x{SIDE}) JPEG/YCC Q={QUALITY}"
        f"|AppMag = {OBJECTIVE}|MPP = {MPP}"
    )
    part = path.with_suffix(".part")
    with tifffile.TiffWriter(part, bigtiff=True) as writer:
        for factor in FACTORS:
            width, height = slide.width // factor, slide.height // factor
            writer.write(
                level_0(slide) if factor == 1 else lower_level(slide, factor),
                shape=(height, width, 3),
                dtype=np.uint8,
                tile=(SIDE, SIDE),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                description=description if factor == 1 else None,
                software=False,
                metadata=None,
                subfiletype=0 if factor == 1 else 1,
            )
    part.replace(path)


def level_0(slide: Arrangement) -> Iterator[bytes]:
    """JPEG tiles of the full resolution, row by row."""
    encoded = [
        [[encode(cut(picture, x, y)) for x in range(ROW)] for y in range(ROW)]
        for picture in slide.pictures
    ]
    glass = encode(np.full((SIDE, SIDE, 3), GLASS, np.uint8))
    columns, rows = -(-slide.width // SIDE), -(-slide.height // SIDE)
    tissue = slide.tissue_width // SIDE
    for row in range(rows):
        for column in range(columns):
            if column < tissue:
                picture = slide.places[row // ROW, column // ROW]
                yield encoded[picture][row % ROW][column % ROW]
            else:
                yield glass


def lower_level(slide: Arrangement, factor: int) -> Iterator[bytes]:
    """JPEG tiles of a level that is reduced by a factor, row by row."""
    side = PICTURE // factor  # of a picture on this level
    shape = (len(slide.pictures), side, factor, side, factor, 3)
    small = np.rint(slide.pictures.reshape(shape).mean(axis=(2, 4))).astype(np.uint8)
    width, height = slide.width // factor, slide.height // factor
    columns, rows = -(-width // SIDE), -(-height // SIDE)
    for row in range(rows):
        band = np.full((SIDE, columns * SIDE, 3), GLASS, np.uint8)
        for y in range(SIDE):
            line, inside = divmod(row * SIDE + y, side)
            if line < len(slide.places):
                pixels = small[slide.places[line], inside].reshape(-1, 3)
                band[y, : len(pixels)] = pixels[: columns * SIDE]
        for column in range(columns):
            yield encode(np.ascontiguousarray(band[:, column * SIDE : (column + 1) * SIDE]))


def cut(picture: Pixels, x: int, y: int) -> Pixels:
    """The part of a picture that a JPEG tile holds."""
    part = picture[y * SIDE : (y + 1) * SIDE, x * SIDE : (x + 1) * SIDE]
    return np.ascontiguousarray(part)


def encode(pixels: Pixels) -> bytes:
    """A complete JPEG, YCbCr 4:2:0."""
    import simplejpeg

    data: bytes = simplejpeg.encode_jpeg(pixels, quality=QUALITY, colorsubsampling="420")
    return data


def main() -> None:
    """Write one slide."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tiles", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=24_000)
    parser.add_argument("--height", type=int, default=20_000)
    options = parser.parse_args()
    write_slide(options.out, arrange(options.tiles, options.width, options.height))


if __name__ == "__main__":
    main()
