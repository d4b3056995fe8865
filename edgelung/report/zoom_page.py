"""The page of a slide at full resolution: a Deep Zoom pyramid in OpenSeadragon, from file://."""

from importlib import resources

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from edgelung.artifacts.slide_summary import SlideSummary
from edgelung.artifacts.slide_tiles import SlideTiles
from edgelung.core.own_folders import SLIDE_PAGE
from edgelung.report.gallery import script_hash, script_json
from edgelung.report.render import render
from edgelung.report.slide_page import (
    legend_values,
    script_text,
    slide_headline,
    slide_layers,
    white_parts,
)
from edgelung.slides.base import Overview
from edgelung.slides.tile_raster import Raster
from edgelung.slides.zoom import FOLDER, SIDE, Pyramid


def zoom_page(
    summary: SlideSummary,
    overview: Overview,
    tiles: SlideTiles,
    mask: npt.NDArray[np.bool_] | None,
    mask_downsample: float,
    pyramid: Pyramid,
) -> str:
    """zoom.html, to be written beside the pyramid's folder. Arguments as of `slide_page`."""
    vendor = resources.files("edgelung.report") / "vendor"
    library = (vendor / "openseadragon.min.js").read_text(encoding="utf-8")
    library = library.partition("//# sourceMappingURL")[0]  # the map is not here
    script = script_text("scale_bar.js") + script_text("zoom.js")
    base = Raster.of_slide(pyramid.width, pyramid.height, overview.downsample)
    layers = slide_layers(tiles, base, mask, mask_downsample)
    damaged = pyramid.damaged
    return render(
        "zoom.html.j2",
        kind="zoom",
        title=f"edgelung zoom: {summary.slide}",
        headline=slide_headline(summary),
        facts={},
        warnings=[white_parts(damaged, "slide")] if damaged else [],
        layers=layers,
        **legend_values(tiles),
        back=SLIDE_PAGE,
        folder=FOLDER,
        licence=(vendor / "openseadragon.LICENSE.txt").read_text(encoding="utf-8"),
        data=script_json(
            {
                "slideWidth": pyramid.width,
                "slideHeight": pyramid.height,
                "mpp": summary.mpp,
                "tile": SIDE,
                "folder": FOLDER,
                "layers": [
                    {
                        "key": layer.key,
                        "title": layer.title,
                        "picture": layer.picture,
                        "across": layer.across * base.width * base.downsample / pyramid.width,
                        "down": layer.down * base.width * base.downsample / pyramid.width,
                    }
                    for layer in layers
                ],
            }
        ),
        library=Markup(library),
        script=Markup(script),
        library_hash=Markup(script_hash(library)),
        script_hash=Markup(script_hash(script)),
    )
