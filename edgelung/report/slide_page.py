"""The page of a slide: the picture with overlays that toggle, shares, what was done.

The page is one file: pictures travel in it, its only scripts are named by their hash, and its
policy allows no request. The same results give the same bytes.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from edgelung.artifacts.slide_summary import FAILED, OK, Blocks, SlideSummary
from edgelung.artifacts.slide_tiles import SlideTiles
from edgelung.evaluation.intervals import FEW_GROUPS
from edgelung.report.figures import picture
from edgelung.report.gallery import script_hash, script_json
from edgelung.report.render import render, shortened
from edgelung.report.verdicts import Headline, Tone, count
from edgelung.slides import heatmap
from edgelung.slides.base import Overview
from edgelung.slides.colours import NO_LABEL, class_colour, css, probability_colours
from edgelung.slides.overview import shrink
from edgelung.slides.tile_raster import Raster, TileRaster
from edgelung.tiles.resize import Tile
from edgelung.tiles.status import Status

ZOOM_PAGE = "zoom.html"
MAX_SIDE = 4096  # pixels of the picture in the page
OVERLAY_SIDE = 2048  # pixels of an overlay: a tile is larger than two pixels of it
MAX_OVERLAYS = 8  # classes with a heat map in the page, the largest shares first
MAX_NAMED = 40  # classes in the legend
OPAQUE = 255
NO_BREAK = "\u00a0"  # a number and its unit stay on one line


@dataclass(frozen=True)
class Layer:
    """An overlay of the page.

    Attributes:
        key: 'labels', 'mask', or a name for a class.
        title: for people.
        picture: PNG as a data URI.
        width, height: of the overlay, percent of the slide's picture.
        across, down: of the overlay, in widths of the slide.
    """

    key: str
    title: str
    picture: str
    width: float
    height: float
    across: float
    down: float


def slide_page(
    summary: SlideSummary,
    overview: Overview,
    tiles: SlideTiles,
    mask: npt.NDArray[np.bool_] | None,
    mask_downsample: float = 1.0,
    *,
    files: Sequence[str] = (),
) -> str:
    """slide.html.

    Args:
        summary: the record of the slide.
        overview: the picture of the slide.
        tiles: its tiles.
        mask: tissue (h, w); None without a mask.
        mask_downsample: pixels of level 0 per pixel of the mask.
        files: names of files beside the page, for links; with ZOOM_PAGE, the picture has one.
    """
    pixels, downsample = reduced(overview)
    height, width, _ = pixels.shape
    script = script_text("scale_bar.js") + script_text("slide.js")
    layers = slide_layers(tiles, Raster(width, height, downsample), mask, mask_downsample)
    return render(
        "slide.html.j2",
        kind="slide",
        title=f"edgelung slide: {summary.slide}{f' ({summary.scene})' if summary.scene else ''}",
        headline=slide_headline(summary),
        facts=_facts(summary),
        warnings=slide_warnings(summary, overview.damaged, len(tiles.classes)),
        overview=picture(pixels),
        shape=f"{width} / {height}",
        layers=layers,
        **legend_values(tiles),
        shares=_shares(summary),
        basis=_basis(summary),
        statuses=dict(sorted(summary.statuses.items(), key=lambda item: -item[1])),
        details=_details(summary),
        files={name: "./" + quote(name) for name in files},
        zoom=ZOOM_PAGE if ZOOM_PAGE in files else "",
        data=script_json(
            {
                "width": width,
                "height": height,
                "downsample": downsample,
                "slideWidth": summary.width,
                "slideHeight": summary.height,
                "mpp": summary.mpp,
            }
        ),
        script=Markup(script),
        script_hash=Markup(script_hash(script)),
    )


def script_text(name: str) -> str:
    """A script of this package."""
    return (resources.files("edgelung.report") / name).read_text(encoding="utf-8")


def reduced(overview: Overview) -> tuple[Tile, float]:
    """The picture with at most MAX_SIDE pixels a side, and its downsample."""
    height, width, _ = overview.pixels.shape
    raster = Raster(width, height, overview.downsample).reduced(MAX_SIDE)
    factor = round(raster.downsample / overview.downsample)
    if factor == 1:
        return overview.pixels, overview.downsample
    return shrink(overview.pixels, factor), raster.downsample


def slide_layers(
    tiles: SlideTiles,
    base: Raster,
    mask: npt.NDArray[np.bool_] | None,
    mask_downsample: float,
) -> list[Layer]:
    """The overlays: labels, some classes, the mask. `base`: raster of the slide's picture."""
    on = TileRaster(tiles, base.reduced(OVERLAY_SIDE))

    def layer(key: str, title: str, png: bytes, raster: Raster) -> Layer:
        data = "data:image/png;base64," + base64.b64encode(png).decode()
        across = raster.width * raster.downsample / (base.width * base.downsample)
        down = raster.height * raster.downsample / (base.height * base.downsample)
        ratio = base.height / base.width
        return Layer(key, title, data, 100 * across, 100 * down, across, down * ratio)

    labels = tiles.shown_labels
    counts = np.bincount(labels[labels >= 0], minlength=len(tiles.classes))
    largest = sorted(np.argsort(-counts, kind="stable")[:MAX_OVERLAYS].tolist())
    layers = [layer("labels", "labels", heatmap.label_map(on, OPAQUE), on.raster)]
    for index in largest:
        png = heatmap.heat_map(on, index, OPAQUE)
        layers.append(layer(f"class-{index}", tiles.classes[index], png, on.raster))
    if tiles.unknown.any():
        layers.append(layer("unknown", "hatch unknown tissue", heatmap.hatching(on), on.raster))
    if mask is not None:
        raster = Raster(mask.shape[1], mask.shape[0], mask_downsample)
        layers.append(layer("mask", "dim outside the tissue", heatmap.dimmed_glass(mask), raster))
    return layers


def legend_values(tiles: SlideTiles) -> dict[str, object]:
    """`keys` and `scale` of the legends."""
    classes = tiles.classes
    keys = [
        {"name": name, "colour": css(class_colour(index))}
        for index, name in enumerate(classes[:MAX_NAMED])
    ]
    if len(classes) > MAX_NAMED:
        keys.append({"name": f"and {len(classes) - MAX_NAMED} more", "colour": "transparent"})
    keys.append({"name": "no label", "colour": css(NO_LABEL)})
    if tiles.unknown.any():
        keys.append({"name": "hatched: unlike the training tiles", "colour": "transparent"})
    red, green, blue = probability_colours(10).T.tolist()
    return {"keys": keys, "scale": [css(one) for one in zip(red, green, blue, strict=True)]}


def slide_headline(summary: SlideSummary) -> Headline:
    """What the labels say, in one sentence."""
    if summary.status == FAILED:
        return Headline(f"No results: {summary.reason or 'the slide failed'}", Tone.BAD)
    top = summary.most_frequent
    if top is None and (unknown := summary.statuses.get(Status.UNKNOWN, 0)):
        share = _percent(unknown / summary.tiles)
        text = f"No label: {share} of the tiles are unlike the training tiles"
        return Headline(text, Tone.CAUTION)
    if top is None:
        return Headline("No tile of this slide has a label", Tone.CAUTION)
    name = shortened(top.name).striptags()
    labelled = sum(summary.labels.values())
    all_labelled = labelled == summary.tiles
    tissue = "tissue" if all_labelled else "labelled tissue"
    text = f"Research use: {name} on {_percent(top.share)} of the {tissue}"
    if top.interval:
        text += f" (95{NO_BREAK}% interval {_span(top.interval)})"
    tiles = count(labelled, "tile") if all_labelled else f"{labelled:,} of {summary.tiles:,} tiles"
    text += f", from {tiles}"
    is_plain = summary.status == OK and not summary.notes and top.interval and not summary.failed
    return Headline(text, Tone.GOOD if is_plain else Tone.CAUTION)


def slide_warnings(summary: SlideSummary, damaged: int, classes: int) -> list[str]:
    """What a person should know before looking, one sentence each."""
    warnings = [_sentence(text) for text in (summary.reason, *summary.notes) if text]
    if failed := summary.failed_tiles:
        were = "was not predicted, and is" if failed == 1 else "were not predicted, and are"
        warnings.append(f"{count(failed, 'tile')} {were} grey in the overlay.")
    if unknown := summary.statuses.get(Status.UNKNOWN, 0):
        are = "is" if unknown == 1 else "are"
        warnings.append(
            f"{count(unknown, 'tile')} ({_percent(unknown / summary.tiles)}) {are} unlike the "
            "training tiles and without a label. The maps show what the model would say, under "
            "hatching."
        )
    if blank := summary.statuses.get(Status.BLANK, 0):
        show = "shows" if blank == 1 else "show"
        warnings.append(f"{count(blank, 'tile')} {show} no tissue that can be judged.")
    if review := summary.statuses.get(Status.REVIEW, 0):
        have = "has" if review == 1 else "have"
        warnings.append(f"{count(review, 'tile')} {have} no label: confidence below the limit.")
    if not summary.knows_unknown and summary.tiles:
        warnings.append("The bundle cannot tell tissue that the model was not made for.")
    if damaged:
        warnings.append(white_parts(damaged, "overview"))
    if summary.blocks and summary.blocks.effective < FEW_GROUPS:
        warnings.append(
            "The shares have no interval: there is too little labelled tissue "
            f"({_effective(summary.blocks)}; an interval needs {FEW_GROUPS})."
        )
    if classes > MAX_OVERLAYS:
        warnings.append(
            f"The page shows the heat maps of {MAX_OVERLAYS} of {classes} classes; all are in the "
            "folder of this page."
        )
    return warnings


def white_parts(damaged: int, what: str) -> str:
    """A warning about parts of a picture that could not be read."""
    are = "is" if damaged == 1 else "are"
    return f"{count(damaged, 'part')} of the {what} cannot be read, and {are} white."


def _sentence(text: str) -> str:
    """A note, which begins in lower case and ends without a full stop, as a sentence."""
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _facts(summary: SlideSummary) -> dict[str, str]:
    tissue = summary.tissue
    return {
        "date": f"{summary.ended[:16].replace('T', ' ')} UTC",
        "slide": summary.slide,
        "size": f"{summary.width:,} × {summary.height:,} px",
        "tissue": f"{tissue.area_mm2:.1f} mm²" if tissue else "",
        "tiles": f"{summary.tiles:,}",
        "bundle": summary.bundle,
        "engine": " ".join(filter(None, (summary.engine, summary.precision)))
        + (f" on {summary.device}" if summary.device else ""),
        "SHA-256 of the bundle": summary.bundle_sha256[:16],
    }


def _details(summary: SlideSummary) -> Mapping[str, Mapping[str, str]]:
    tissue = summary.tissue
    mpp = f"{summary.mpp:.4g} µm per pixel" if summary.mpp else "unknown"
    um = f" = {summary.tile_um:.4g} µm" if summary.tile_um else ""
    threshold = "" if tissue is None or tissue.threshold is None else f"{tissue.threshold:g}"
    speed = summary.tiles_per_second
    return {
        "Reading and scale": {
            "format": summary.format,
            "reader": summary.reader,
            "scale": f"{mpp}{f' ({summary.mpp_source})' if summary.mpp_source else ''}",
            "tile": f"{summary.tile_px:,} px of level 0{um}",
            "level": f"{summary.level}, decoded at {summary.eighths}/8",
            "overlap of tiles": f"{100 * summary.overlap:g} %",
        },
        "Tissue": {
            "rule": tissue.rule,
            "threshold": threshold,
            "share of the slide": _percent(tissue.share),
            "mask": f"one pixel is {tissue.downsample:g} px of level 0",
        }
        if tissue
        else {"rule": "no mask: every tile was predicted"},
        "Model and run": {
            "bundle": summary.bundle,
            "SHA-256 of the bundle": summary.bundle_sha256,
            "signature": summary.signature,
            "engine": summary.engine,
            "precision": summary.precision,
            "device": summary.device,
            "early exit": _left_early(summary.stages),
            "time": f"{summary.seconds:,.1f} s" if summary.seconds else "",
            "speed": f"{speed:,.1f} tiles/s" if speed else "",
            "begun": summary.started,
            "resumed": ", ".join(summary.sessions[1:]),
            "ended": summary.ended,
        },
    }


def _left_early(stages: Mapping[str, int]) -> str:
    """How many tiles left the model early; '' without an early exit."""
    predicted = sum(stages.values())
    return f"{stages.get('1', 0):,} of {predicted:,} tiles left there" if predicted else ""


def _shares(summary: SlideSummary) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for index, one in enumerate(summary.shares):
        low, high = one.interval or (0.0, 0.0)
        rows.append(
            {
                "name": one.name,
                "tiles": one.tiles,
                "share": "–" if one.share is None else _percent(one.share),
                "interval": _span(one.interval) if one.interval else "unknown",
                "width": f"{100 * (one.share or 0.0):.2f}",
                "low": f"{100 * low:.2f}" if one.interval else "",
                "span": f"{100 * (high - low):.2f}",
                "colour": css(class_colour(index)),
            }
        )
    return rows


def _basis(summary: SlideSummary) -> str:
    blocks = summary.blocks
    if blocks is None:
        return "No tile with tissue has a label."
    side = f"{blocks.side_um / 1000:g} mm"
    text = "Shares are of the labelled tissue. "
    if blocks.effective >= FEW_GROUPS:
        text += (
            f"The interval resamples {count(blocks.count, 'block')} of {side} "
            f"({_effective(blocks)}), since neighbouring tiles are alike. "
        )
    else:
        text += (
            f"It lies in {count(blocks.count, 'block')} of {side} ({_effective(blocks)}), too few "
            "for an interval. "
        )
    return text + (
        "All this is about this slide alone: it says nothing about other slides, nor about errors "
        "of the model."
    )


def _effective(blocks: Blocks) -> str:
    """The effective number of blocks, in words."""
    return f"{blocks.effective:g} effective block{'' if blocks.effective == 1 else 's'}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}{NO_BREAK}%"


def _span(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f} – {100 * interval[1]:.1f}{NO_BREAK}%"
