"""Figures as SVG text and pictures as data URIs, to embed in an HTML page."""

import base64
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import simplejpeg

from edgelung.artifacts.run import EpochRecord

mpl.use("svg")  # works without a display
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The colours also differ in lightness, for print and for colour-blind readers. Both are visible on
# a white page and on a dark page.
BLUE, ORANGE = "#3d85c6", "#d9822b"
INK = "#010203"  # placeholder: `svg` replaces it by the text colour of the page

for _part in ("text.", "axes.label", "axes.edge", "xtick.", "ytick.", "axes.title"):
    mpl.rcParams[f"{_part}color"] = INK  # type: ignore[index]  # the name is composed
mpl.rcParams["legend.labelcolor"] = INK
mpl.rcParams["svg.fonttype"] = "none"  # text stays text: browsers have fonts for more scripts
mpl.rcParams["text.parse_math"] = False  # class names may contain dollar signs
for _part in ("figure", "axes"):
    mpl.rcParams[f"{_part}.facecolor"] = "none"  # type: ignore[index]


@dataclass(frozen=True)
class TilePicture:
    """A tile on the page of a run, with the prediction if one is shown. `picture` is a data URI."""

    picture: str
    truth: str
    path: str = ""
    label: str | None = None
    confidence: float | None = None


@dataclass(frozen=True)
class RunPictures:
    """The tiles on the page of a run, by the section that shows them."""

    augmented: list[TilePicture]
    sample: list[TilePicture]
    mistakes: list[TilePicture]


def picture(pixels: npt.NDArray[np.uint8]) -> str:
    """Encode RGB pixels, uint8 (H, W, 3), as a JPEG data URI."""
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def curves(history: Sequence[EpochRecord], title: str) -> str:
    """Plot loss and validation accuracy over the epochs of one stage (the paper's Figs. 11–13)."""

    def draw(axes: Axes, key: str, scale: float, *style: Any, **options: Any) -> None:
        points = [(record.epoch, getattr(record, key)) for record in history]
        known = [(epoch, value) for epoch, value in points if value is not None]
        epochs, values = [epoch for epoch, _ in known], [scale * value for _, value in known]
        axes.plot(epochs, values, *style, markersize=3, **options)

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    # The losses are not comparable: training is Eq. 8 on augmented tiles, validation is the
    # negative log likelihood on plain tiles.
    for key, style, colour, label in (
        ("loss", "o-", BLUE, "training"),
        ("val_loss", "o--", ORANGE, "validation, −log p"),
    ):
        draw(left, key, 1, style, color=colour, label=label)
    left.set(xlabel="epoch", ylabel="loss", title=f"{title}: loss")
    for key, style, colour in (
        ("val_accuracy", "o-", BLUE),
        ("val_balanced_accuracy", "o--", ORANGE),
    ):
        label = key.removeprefix("val_").replace("_", " ")
        draw(right, key, 100, style, color=colour, label=label)
    right.set(xlabel="epoch", ylabel="%", title=f"{title}: validation", xlim=left.get_xlim())
    low, high = right.get_ylim()  # nearly equal values would fill the axis with rounding noise
    right.set_ylim(min(low, high - 2), max(high, low + 2))
    begin = next((record.epoch for record in history if record.val_loss is not None), 1)
    if begin > 1:
        left.axvline(begin - 0.5, color=INK, linewidth=0.8, linestyle=":", label="labels begin")
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return svg(figure)


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> str:
    """Plot a confusion matrix: counts, and shares of the row (the paper's Fig. 14)."""
    figure, axes = plt.subplots(figsize=(1.6 + 0.9 * len(classes), 1.2 + 0.8 * len(classes)))
    figure.set_layout_engine("constrained")
    shares = [[n / max(sum(row), 1) for n in row] for row in matrix]
    opacity = np.array(shares)  # one transparent colour suits a light and a dark page
    rgba = np.zeros((*opacity.shape, 4))
    rgba[..., :3], rgba[..., 3] = mpl.colors.to_rgb("#1f5fa8"), opacity
    axes.imshow(rgba)
    for i, row in enumerate(matrix):
        for j, n in enumerate(row):
            colour = "white" if shares[i][j] > 0.5 else INK
            axes.text(
                j, i, f"{n}\n{100 * shares[i][j]:.1f} %", ha="center", va="center", color=colour
            )
    axes.set_xticks(range(len(classes)), classes, rotation=20, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="truth", title=title)
    return svg(figure)


def estimates(
    names: Sequence[str], values: Sequence[float], bounds: Sequence[tuple[float, float]], title: str
) -> str:
    """Plot one dot with its 95 % interval per model, from top to bottom. Fractions, shown in %."""
    figure, axes = plt.subplots(figsize=(7.5, 0.9 + 0.42 * len(names)), layout="constrained")
    for row, (value, (low, high)) in enumerate(zip(values, bounds, strict=True)):
        axes.plot([100 * low, 100 * high], [row, row], color=BLUE, linewidth=2, alpha=0.6)
        axes.plot(100 * value, row, "o", color=BLUE)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel=title)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return svg(figure)


def svg(figure: Figure) -> str:
    """Return the figure as SVG text in the text colour of the page, and close the figure."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing from font"
        )  # fonts only measure the text here
        # No date: the same run gives the same bytes.
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")
