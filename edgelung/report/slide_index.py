"""The index page over all slides of a run."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from edgelung.artifacts.slide_summary import FAILED, OK, SlideSummary
from edgelung.report.render import render
from edgelung.report.verdicts import Headline, Tone, count

INDEX_PAGE = "index.html"
MAX_CLASSES = 12  # columns of shares; more would not be read


@dataclass(frozen=True)
class IndexRow:
    """A row of the table. `tone`: the class of the status in the stylesheet."""

    name: str
    link: str
    status: str
    tone: str
    reason: str
    tissue: str
    tiles: str
    shares: Sequence[str]


def index_page(slides: Sequence[SlideSummary], links: Mapping[int, str], title: str) -> str:
    """index.html.

    Args:
        slides: one summary per slide, in the order of the table.
        links: position in `slides` → path of its page, relative to the index, with `/`. A slide
            that failed has none.
        title: name of the run, such as its folder.
    """
    classes = list(dict.fromkeys(one.name for slide in slides for one in slide.shares))
    shown = classes[:MAX_CLASSES]
    first = slides[0] if slides else None
    return render(
        "slides.html.j2",
        kind="slides",
        title=f"edgelung slides: {title}",
        headline=_headline(slides),
        facts={
            "date": f"{max(slide.ended for slide in slides)[:16].replace('T', ' ')} UTC",
            "slides": f"{len(slides):,}",
            "tiles": f"{sum(slide.tiles for slide in slides):,}",
            "bundle": first.bundle,
            "SHA-256 of the bundle": first.bundle_sha256[:16],
        }
        if first
        else {},
        classes=shown,
        rows=[_row(slide, shown, links.get(number, "")) for number, slide in enumerate(slides)],
    )


def _headline(slides: Sequence[SlideSummary]) -> Headline:
    failed = sum(slide.status == FAILED for slide in slides)
    partly = sum(slide.status not in (OK, FAILED) for slide in slides)
    if not slides:
        return Headline("No slide was found", Tone.CAUTION)
    if failed == len(slides):
        return Headline(f"All {count(failed, 'slide')} failed", Tone.BAD)
    text = f"{count(len(slides) - failed, 'slide')} predicted"
    if failed:
        text += f", {failed:,} failed"
    if partly:
        text += f", {partly:,} with a remark"
    return Headline(text, Tone.CAUTION if failed or partly else Tone.GOOD)


def _row(slide: SlideSummary, classes: Sequence[str], link: str) -> IndexRow:
    shares = {one.name: one.share for one in slide.shares}
    failed = slide.status == FAILED
    return IndexRow(
        name=slide.slide + (f" ({slide.scene})" if slide.scene else ""),
        link="./" + quote(os.fsencode(link)) if link else "",
        status=slide.status,
        tone="pass" if slide.status == OK else "fail" if failed else "inconclusive",
        reason=slide.reason,
        tissue=f"{slide.tissue.area_mm2:,.1f}" if slide.tissue else "–",
        tiles="–" if failed else f"{slide.tiles:,}",
        shares=[
            "–" if (share := shares.get(name)) is None else f"{100 * share:.1f} %"
            for name in classes
        ],
    )
