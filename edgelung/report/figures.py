"""Figures as SVG text, and pictures as data URIs, that stand inside an HTML page."""

import base64
import io
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import simplejpeg

from edgelung.artifacts.run import EpochRecord

mpl.use("svg")  # no display is needed, or touched
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Two colours that differ in lightness too, for print and for colour-blind readers; both stand out
# from a white page and from a dark one.
BLUE, ORANGE = "#3d85c6", "#d9822b"
INK = "#010203"  # stands for the page's own text colour, whatever its scheme

for _part in ("text.", "axes.label", "axes.edge", "xtick.", "ytick.", "axes.title"):
    mpl.rcParams[f"{_part}color"] = INK  # type: ignore[index]  # a name that is put together
mpl.rcParams["legend.labelcolor"] = INK
mpl.rcParams["svg.fonttype"] = "none"  # the reader's fonts know more scripts than matplotlib's
mpl.rcParams["text.parse_math"] = False  # a class may have dollars in its name
for _part in ("figure", "axes"):
    mpl.rcParams[f"{_part}.facecolor"] = "none"  # type: ignore[index]


def picture(pixels: npt.NDArray[np.uint8]) -> str:
    """A JPEG data URI of RGB uint8 [H, W, 3]."""
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def curves(history: Sequence[EpochRecord], title: str) -> str:
    """Loss and validation accuracy over the epochs of one stage (the paper's Figs. 11–13)."""

    def drawn(axes: Axes, key: str, scale: float, *style: Any, **more: Any) -> None:
        figures = [(record.epoch, getattr(record, key)) for record in history]
        known = [(epoch, value) for epoch, value in figures if value is not None]
        epochs, values = [epoch for epoch, _ in known], [scale * value for _, value in known]
        axes.plot(epochs, values, *style, markersize=3, **more)

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    # Not one scale: training is Eq. 8 on augmented tiles, validation the likelihood on plain ones.
    for key, style, colour, label in (
        ("loss", "o-", BLUE, "training"),
        ("val_loss", "o--", ORANGE, "validation, −log p"),
    ):
        drawn(left, key, 1, style, color=colour, label=label)
    left.set(xlabel="epoch", ylabel="loss", title=f"{title}: loss")
    for key, style, colour in (
        ("val_accuracy", "o-", BLUE),
        ("val_balanced_accuracy", "o--", ORANGE),
    ):
        label = key.removeprefix("val_").replace("_", " ")
        drawn(right, key, 100, style, color=colour, label=label)
    right.set(xlabel="epoch", ylabel="%", title=f"{title}: validation", xlim=left.get_xlim())
    low, high = right.get_ylim()  # of one epoch, or of even ones, no wider than rounding
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
    """Confusion matrix with counts; shade by the share of the row (the paper's Fig. 14)."""
    figure, axes = plt.subplots(figsize=(1.6 + 0.9 * len(classes), 1.2 + 0.8 * len(classes)))
    figure.set_layout_engine("constrained")
    shares = [[n / max(sum(row), 1) for n in row] for row in matrix]
    opacity = np.array(shares)  # of one colour: light or dark, the page shows through
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
    """One dot with its 95 % interval per model, best read downwards; fractions, shown in %."""
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
    """The figure as SVG text in the page's own ink; closes it."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # it only measures them
        # No date, so that the same run gives the same bytes.
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")
