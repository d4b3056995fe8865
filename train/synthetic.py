"""Synthetic H&E-like tiles, so that the demo runs without a download.

The tiles are drawn by this program: they are not tissue, they come from no patient, and a score
on them says nothing about a score on real slides. The three classes differ in architecture and
nuclei (glands, solid nests, thin alveolar walls). Stain, exposure and white share vary from source
to source, so that the mean colour alone does not give the class away.

Every tile is painted as two concentration maps, haematoxylin and eosin, which Beer-Lambert
absorption turns into RGB. Shapes are given on a 224 x 224 plane, whatever the size in pixels.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from edgelung.core.own_folders import GROUPS

CLASSES = ("lung_aca", "lung_n", "lung_scc")

Floats = npt.NDArray[np.floating[Any]]

PLANE = 224.0  # side of the drawing plane
GRID = 112  # side of the coarse maps that are stretched over the plane
UNIT = 100.0  # 8-bit level that stands for concentration 1
NOTICE = (
    "These tiles are drawn by a program; they are not tissue and come from no patient. "
    "They are for trying the toolkit only.\n"
)


class _Style:
    """What the tiles of one source have in common, as those of one slide do."""

    def __init__(self, rng: np.random.Generator) -> None:
        blue, hue = rng.uniform(-1, 1, 2)
        haematoxylin = (0.74 + 0.16 * blue, 0.92, 0.42 - 0.10 * blue)
        eosin = (0.13 + 0.07 * hue, 0.62, 0.30 - 0.12 * hue)
        self.stains = np.array([haematoxylin, eosin], np.float32)  # optical density per unit
        self.load = rng.uniform([0.16, 0.28], [0.36, 0.66])  # mean concentrations to aim for
        self.light = rng.uniform(0.80, 1.0) * rng.uniform(0.93, 1.0, 3)  # colour of empty glass
        self.nucleus = rng.uniform(0.88, 1.12)  # factor on nuclear radius
        self.space = rng.uniform()  # how much empty space the architecture leaves
        self.fluid = rng.uniform(0.0, 0.30)  # eosin in that space
        self.blur = rng.uniform(0.4, 0.8)


def _stretch(coarse: Floats, side: int) -> Floats:
    image = Image.fromarray(coarse.astype(np.float32))
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))


def _noise(rng: np.random.Generator, cells: int, side: int = GRID) -> Floats:
    """Smooth noise of about unit variance with ``cells`` bumps per side: float32 [side, side]."""
    return _stretch(rng.normal(0, 1.2, (cells, cells)), side)


def _fibres(rng: np.random.Generator) -> Floats:
    """Wavy parallel strands, as of collagen: [GRID, GRID] in -1..1."""
    y, x = np.mgrid[0:GRID, 0:GRID]
    angle = rng.uniform(0, np.pi)
    across: Floats = 0.75 * (x * np.cos(angle) + y * np.sin(angle))
    return np.sin(across + 5 * _noise(rng, 5) + _noise(rng, 28))


def _walls(rng: np.random.Generator, rows: int) -> Floats:
    """Distance, on the plane, to the nearest wall between ``rows * rows`` cells: [GRID, GRID].

    The cells are Voronoi cells of a jittered lattice, with the plane bent so that walls curve.
    """
    y, x = np.mgrid[0:GRID, 0:GRID].astype(np.float32) * (PLANE / GRID)
    x, y = x + 6 * _noise(rng, 7), y + 6 * _noise(rng, 7)
    # One more row on each side, so that the tile's edge cuts through cells as in real tissue.
    cells = np.mgrid[-1 : rows + 1, -1 : rows + 1].reshape(2, -1, 1, 1) + 0.5
    cells = cells + rng.uniform(-0.42, 0.42, cells.shape) + rng.uniform(-0.5, 0.5, (2, 1, 1, 1))
    cx, cy = (cells * PLANE / rows).astype(np.float32)
    nearest = np.partition(np.hypot(x - cx, y - cy), 1, axis=0)
    distance: Floats = (nearest[1] - nearest[0]) / 2
    return distance


def _at(field: Floats, points: Floats) -> Floats:
    """Value of a coarse map at plane points [n, 2]: [n]."""
    cell = np.clip(points * (GRID / PLANE), 0, GRID - 1).astype(int)
    value: Floats = field[cell[:, 1], cell[:, 0]]
    return value


def _lattice(rng: np.random.Generator, pitch: float, jitter: float) -> Floats:
    """Points of a jittered hexagonal lattice over the plane: [n, 2]."""
    row, column = np.mgrid[0 : PLANE / pitch * 1.2, 0 : PLANE / pitch + 1].reshape(2, -1)
    points = np.stack([column + 0.5 * (row % 2), 0.87 * row], axis=-1)
    return (points + rng.uniform(-jitter, jitter, points.shape)) * pitch


def _towards(centre: Floats, shapes: Floats, share: float) -> Floats:
    """Polygons [n, k, 2] scaled about their centres [n, 2]."""
    return centre[:, None] + share * (shapes - centre[:, None])


class _Canvas:
    """Two 8-bit concentration maps that are painted together, later shapes over earlier ones."""

    def __init__(self, rng: np.random.Generator, style: _Style, side: int) -> None:
        self.rng, self.style, self.side = rng, style, side
        self.images = [Image.new("L", (side, side)) for _ in range(2)]
        self.pens = [ImageDraw.Draw(image) for image in self.images]

    def ground(self, haematoxylin: Floats, eosin: Floats) -> None:
        """Fill the whole canvas with two coarse maps."""
        for image, coarse in zip(self.images, (haematoxylin, eosin), strict=True):
            level = np.clip(_stretch(coarse * UNIT, self.side), 0, 255)
            image.paste(Image.fromarray(level.astype(np.uint8)))

    def fill(self, shapes: Floats, haematoxylin: Floats | float, eosin: Floats | float) -> None:
        """Fill polygons [n, k, 2] with one concentration each, or with one for all."""
        corners = (shapes * (self.side / PLANE)).reshape(-1, 2 * shapes.shape[1]).tolist()
        for pen, level in zip(self.pens, (haematoxylin, eosin), strict=True):
            levels = np.clip(np.broadcast_to(level, len(shapes)) * UNIT, 0, 255).astype(int)
            for corner, value in zip(corners, levels.tolist(), strict=True):
                pen.polygon(corner, fill=value)

    def blobs(
        self, centre: Floats, radius: Any, stretch: Any = 1.0, angle: Any = 0.0, rough: float = 0.08
    ) -> Floats:
        """Bumpy ellipses at points [n, 2], one size for each or for all: polygons [n, 24, 2]."""
        turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        radius, stretch, angle = (np.reshape(v, (-1, 1)) for v in (radius, stretch, angle))
        reach = np.ones((len(centre), 24))
        for order in (2, 3, 4):
            phase, height = self.rng.normal(0, ((9,), (rough,)), (2, len(centre)))[..., None]
            reach += height * np.cos(order * turn + phase)
        # The square root keeps the area whatever the stretch.
        u = radius * reach * np.cos(turn) * np.sqrt(stretch)
        v = radius * reach * np.sin(turn) / np.sqrt(stretch)
        c, s = np.cos(angle), np.sin(angle)
        return np.stack([c * u - s * v, s * u + c * v], axis=-1) + centre[:, None]

    def nuclei(
        self, centre: Floats, radius: Any, stretch: Any, angle: Any, depth: float, clear: float = 0
    ) -> None:
        """Dark bodies; ``clear`` chromatin gives a paler inside, a rim and a nucleolus."""
        shapes = self.blobs(centre, self.style.nucleus * radius, stretch, angle)
        dark = depth * self.rng.uniform(0.8, 1.2, len(centre))
        self.fill(shapes, dark, 0.32)
        if clear:
            self.fill(_towards(centre, shapes, 0.74), dark * (1 - clear), 0.32)
            spot = centre + self.rng.normal(0, 1.2, centre.shape)
            self.fill(self.blobs(spot, self.rng.uniform(0.9, 1.7, len(spot))), 1.15 * dark, 0.35)

    def spindles(self, where: Floats) -> None:
        """Thin fibroblast nuclei, with a few round lymphocytes among them."""
        n = len(where)
        stretch = np.where(self.rng.uniform(size=n) < 0.25, 1.1, self.rng.uniform(2.5, 5, n))
        angle = self.rng.uniform(0, np.pi) + self.rng.normal(0, 0.5, n)
        self.nuclei(where, 2.9, stretch, angle, 1.15)


def _adenocarcinoma(canvas: _Canvas) -> None:
    """Glands: rings of basal nuclei around pale lumina, in fibrous stroma."""
    rng, style = canvas.rng, canvas.style
    strands = _fibres(rng)
    holes = _noise(rng, 9) > 2.2 - 0.9 * style.space
    stroma = 0.62 + 0.13 * strands + 0.10 * _noise(rng, 6)
    canvas.ground(0.07 + 0.03 * strands, np.where(holes, style.fluid, stroma))
    canvas.spindles(rng.uniform(0, PLANE, (int(rng.integers(50, 110)), 2)))

    glands: list[tuple[float, float, float]] = []
    for x, y, radius in rng.uniform((-15, -15, 24), (PLANE + 15, PLANE + 15, 50), (120, 3)):
        if all(np.hypot(x - a, y - b) > 1.02 * (radius + r) for a, b, r in glands):
            glands.append((x, y, radius))
    for x, y, radius in glands:
        centre = np.array([[x, y]])
        outline = canvas.blobs(centre, radius, rng.uniform(1, 1.5), rng.uniform(0, np.pi), 0.07)
        wall = min(rng.uniform(13, 17) - 3 * style.space, 0.55 * radius) / radius
        mucin = rng.uniform(0.08, 0.2) * (rng.uniform() < 0.3)
        canvas.fill(_towards(centre, outline, 1.05), 0.02, 0.25)
        canvas.fill(outline, 0.20, 0.50)
        canvas.fill(_towards(centre, outline, 1 - wall), mucin, style.fluid)
        # Place tall nuclei at equal steps along the outline, near the base.
        ring = np.vstack([outline[0], outline[0, :1]])
        travelled = np.r_[0, np.cumsum(np.hypot(*np.diff(ring, axis=0).T))]
        steps = np.arange(0, travelled[-1] - 3, 6.6 * style.nucleus)
        n = len(steps)
        steps += rng.normal(0, 0.9, n)
        out = np.stack([np.interp(steps, travelled, side) for side in ring.T], axis=-1) - centre
        seat = centre + out * (1 - wall * rng.uniform(0.28, 0.62, (n, 1)))
        lean = np.arctan2(out[:, 1], out[:, 0]) + rng.normal(0, 0.25, n)
        canvas.nuclei(seat, rng.uniform(3.3, 4.3, n), rng.uniform(1.1, 2.1, n), lean, 1.05, 0.25)


def _normal(canvas: _Canvas) -> None:
    """A net of thin curved walls around air, with few small nuclei on the walls."""
    rng, style = canvas.rng, canvas.style
    distance = _walls(rng, 4 if style.space < 0.6 else 3)
    # Where the noise makes the width negative the wall is open, as towards a duct.
    width = 5.5 - 2.2 * style.space + 1.5 * _noise(rng, 9)
    wall = np.clip((width - distance) / 1.5, 0, 1)
    canvas.ground(0.10 * wall, wall * (0.72 + 0.15 * _noise(rng, 30)) + (1 - wall) * style.fluid)

    spots = _lattice(rng, 4.5, 0.5)
    red, spots = np.array_split(rng.permutation(spots[_at(wall, spots) > 0.9])[::2], 2)
    canvas.fill(canvas.blobs(red, rng.uniform(1.6, 2.3, len(red))), 0.03, 1.25)  # red blood cells
    uphill = [_at(np.asarray(slope), spots) for slope in np.gradient(distance)]
    along = np.arctan2(*uphill) + np.pi / 2
    n = len(spots)
    canvas.nuclei(spots, rng.uniform(2.2, 3.2, n), rng.uniform(1.0, 2.4, n), along, 1.1)

    free = rng.uniform(0, PLANE, (12, 2))
    free = free[_at(distance, free) > 12][:4]  # macrophages in the air space
    canvas.fill(canvas.blobs(free, 5.5), 0.12, 0.55)
    canvas.nuclei(free, 2.6, 1.0, 0.0, 1.0)


def _squamous(canvas: _Canvas) -> None:
    """Solid nests of crowded, large, uneven nuclei, with keratin pearls and thin stroma bands."""
    rng, style = canvas.rng, canvas.style
    # Distance from the edge of the stroma band into the nest.
    depth = _walls(rng, 2) - rng.uniform(3, 6) - 2.0 * _noise(rng, 5)
    # Processing shrinks the nests away from their stroma and leaves clefts.
    gap = np.clip(8 * style.space + 2.0 * _noise(rng, 6), 0, 14)
    cleft = np.clip(np.minimum(depth, gap - depth), 0, 1)
    cytoplasm = 0.62 + 0.10 * _noise(rng, 9)
    eosin = np.where(depth > 0, cytoplasm, 0.55 + 0.15 * _fibres(rng))
    purple = np.where(depth > 0, 0.18, 0.06)
    canvas.ground((1 - cleft) * purple, eosin + cleft * (style.fluid - eosin))
    loose = rng.uniform(0, PLANE, (420, 2))
    canvas.spindles(loose[_at(depth, loose) < -0.5])

    cells = _lattice(rng, 14.5 * style.nucleus, 0.24)
    cells = cells[_at(depth - gap, cells) > 3]
    n = len(cells)
    # Paler borders separate the cells, like the bridges of a squamous sheet.
    spin = rng.uniform(0, np.pi, (2, n))
    body = canvas.blobs(cells, 8.0 * style.nucleus, rng.uniform(1, 1.3, n), spin[0])
    canvas.fill(body, 0.05, 0.35)
    canvas.fill(_towards(cells, body, 0.9), 0.13, rng.uniform(0.55, 0.85, n))
    radius = np.clip(rng.lognormal(np.log(4.9), 0.24, n), 3, 8.5)
    canvas.nuclei(cells, radius, rng.uniform(1, 1.8, n), spin[1], 1.15, 0.3)

    for _ in range(int(rng.integers(1, 4))):
        centre = rng.uniform(25, PLANE - 25, (1, 2))
        whorl = canvas.blobs(centre, rng.uniform(15, 30), rng.uniform(1, 1.4), rng.uniform(0, 3))
        for layer, share in enumerate(np.linspace(1.0, 0.12, 9)):
            shape = _towards(centre, whorl, share) + rng.normal(0, 0.6, whorl.shape)
            canvas.fill(shape, 0.02, 1.15 if layer % 2 else 0.72)
        out = rng.uniform(0.6, 1.05, (7, 1)) * (rng.permutation(whorl[0])[:7] - centre)
        around = np.arctan2(out[:, 1], out[:, 0]) + np.pi / 2
        canvas.nuclei(centre + out, 2.6, 3.2, around, 0.9)


_PAINTERS = {"lung_aca": _adenocarcinoma, "lung_n": _normal, "lung_scc": _squamous}


def draw_tile(
    label: str, source: int, index: int, size: int = 224, seed: int = 0
) -> npt.NDArray[np.uint8]:
    """Draw one synthetic tile: uint8 [size, size, 3], RGB.

    ``label`` is one of ``CLASSES``. Tiles of one ``source`` share a stain and a style; ``index``
    tells them apart. The same arguments give the same pixels.
    """
    class_index = CLASSES.index(label)
    # Tile streams start at 1: numpy pads seeds with zeros, so 0 is the stream of the source.
    style = _Style(np.random.default_rng((seed, class_index, source, 0)))
    rng = np.random.default_rng((seed, class_index, source, index + 1))
    canvas = _Canvas(rng, style, 2 * size)  # drawn at twice the size, for smooth edges
    _PAINTERS[label](canvas)

    density = np.zeros((size, size, 3), np.float32)
    grain = 1 + 0.10 * _noise(rng, size // 2, size) + 0.06 * _noise(rng, 12, size)
    for image, stain, load in zip(canvas.images, style.stains, style.load, strict=True):
        stained = np.asarray(image.reduce(2), np.float32) * grain / np.float32(UNIT)
        # Scale the stain so that its amount, and with it the mean colour, depends more on the
        # source than on the class.
        stained *= np.float32((load / stained.mean()) ** 0.7)
        density += stained[..., None] * stain
    colour = 255 * style.light.astype(np.float32) * np.exp(-density)
    image = Image.fromarray(colour.clip(0, 255).astype(np.uint8))
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(style.blur)))
    noisy = blurred + rng.normal(0, 2.5, (size, size, 1))
    return noisy.clip(0, 255).astype(np.uint8)


def write_dataset(
    folder: Path, sources: int = 30, tiles_per_source: int = 6, size: int = 224, seed: int = 0
) -> Path:
    """Write a synthetic data set with ``sources`` sources per class; returns ``folder``.

    Tiles go to ``<class>/<class>_s<source>_<index>.jpeg``. ``groups.csv`` gives the path, class
    and cluster (the source) of each; ``SYNTHETIC.txt`` says what the tiles are.
    """
    rows = [("path", "class", "cluster")]
    for label in CLASSES:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for source in range(sources):
            for index in range(tiles_per_source):
                path = f"{label}/{label}_s{source}_{index}.jpeg"
                tile = draw_tile(label, source, index, size, seed)
                Image.fromarray(tile).save(folder / path, quality=90)
                rows.append((path, label, f"{label}:{source}"))
    with (folder / GROUPS).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    (folder / "SYNTHETIC.txt").write_text(NOTICE, encoding="utf-8")
    return folder
