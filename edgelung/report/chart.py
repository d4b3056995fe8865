"""Line and dot charts as inline SVG in the colours of the page.

The title and the legend are HTML above the plot: they wrap on a narrow screen and never cover a
point. Colours come from the stylesheet (classes s0…s5), so a chart suits a light page, a dark page
and print. Coordinates have one decimal, and dots at one place are drawn once: the page stays small.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 260  # user units; the page scales the plot to its column
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 8, 40
COLOURS = 6  # classes s0…s5 in style.css; more series repeat them with dashes
TICKS = 5

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """One axis: its label and its range. `whole`: only whole numbers get a tick."""

    label: str
    low: float = 0.0
    high: float = 1.0
    whole: bool = False


@dataclass(frozen=True)
class Series:
    """One named set of points. Dots mark each point, unless it is a line without `dots`."""

    label: str
    points: Points
    line: bool = True
    dots: bool = True


def chart(title: str, x: Axis, y: Axis, series: Sequence[Series], diagonal: bool = False) -> str:
    """Draw the series on one pair of axes.

    Args:
        title: caption, also the name of the picture for screen readers.
        x, y: the axes; points outside their ranges are drawn at the border.
        series: at most a dozen; those without points only appear in the legend.
        diagonal: draw the line y = x, for example for perfect calibration.

    Returns:
        A <figure> element as HTML text.
    """
    plot = _Plot(x, y)
    parts = [*plot.axes()]
    if diagonal:
        parts.append(f'<path class="grid" d="{plot.line([(x.low, y.low), (x.high, y.high)])}"/>')
    for index, one in enumerate(series):
        style = _style(index)
        if one.line and len(one.points) > 1:
            parts.append(f'<path class="line {style}" d="{plot.line(one.points)}"/>')
        if one.points and (one.dots or len(one.points) == 1):
            size = "dot" if one.line else "dot small"
            parts.append(f'<path class="{size} {style}" d="{plot.dots(one.points)}"/>')
    legend = "".join(
        f'<li><i class="{_style(index)}"></i>{escape(one.label)}</li>'
        for index, one in enumerate(series)
        if len(series) > 1
    )
    names = f"{x.label} against {y.label}" + (
        f": {', '.join(one.label for one in series)}" if legend else ""
    )
    return (
        f'<figure class="chart"><figcaption>{escape(title)}'
        + (f'<ul class="legend">{legend}</ul>' if legend else "")
        + f'</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(f"{title}. {names}")}">{"".join(parts)}</svg></figure>'
    )


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """About TICKS round numbers in low…high: multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    if whole:
        step = max(1.0, step)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def padded(values: Iterable[float], least: float, low: float, high: float) -> tuple[float, float]:
    """A range that holds the values, at least `least` wide and within low…high where it can be.

    Nearly equal values would otherwise fill the axis with rounding noise.
    """
    known = [value for value in values if math.isfinite(value)] or [low]
    smallest, largest = min(known), max(known)
    pad = max(least - (largest - smallest), 0.1 * (largest - smallest)) / 2
    return max(low, smallest - pad), min(high, largest + pad)


def _style(index: int) -> str:
    return f"s{index % COLOURS}" + (" dashed" if index >= COLOURS else "")


@dataclass(frozen=True)
class _Plot:
    x: Axis
    y: Axis

    def place(self, point: tuple[float, float]) -> str:
        """The point in user units, as 'x y'."""
        across = (point[0] - self.x.low) / (self.x.high - self.x.low)
        up = (point[1] - self.y.low) / (self.y.high - self.y.low)
        across, up = (min(max(share, 0.0), 1.0) for share in (across, up))
        left = LEFT + across * (WIDTH - LEFT - RIGHT)
        top = HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)
        return f"{left:.1f} {top:.1f}"

    def line(self, points: Points) -> str:
        """Path data of a line through the points that are numbers."""
        return "M" + "L".join(self.place(point) for point in points if _finite(point))

    def dots(self, points: Points) -> str:
        """Path data of a dot at each point: lines of no length with round ends."""
        places = dict.fromkeys(self.place(point) for point in points if _finite(point))
        return "".join(f"M{place}h0" for place in places)

    def axes(self) -> Iterable[str]:
        """Grid lines, numbers and labels."""
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        for value in ticks(self.x.low, self.x.high, self.x.whole):
            left = self.place((value, self.y.low)).split()[0]
            yield f'<path class="grid" d="M{left} {TOP}V{bottom}"/>'
            yield f'<text x="{left}" y="{bottom + 15}" text-anchor="middle">{value:g}</text>'
        for value in ticks(self.y.low, self.y.high, self.y.whole):
            top = float(self.place((self.x.low, value)).split()[1])
            yield f'<path class="grid" d="M{LEFT} {top}H{right}"/>'
            yield f'<text x="{LEFT - 6}" y="{top + 4}" text-anchor="end">{value:g}</text>'
        middle, height = (LEFT + right) / 2, (TOP + bottom) / 2
        below, beside = escape(self.x.label), escape(self.y.label)
        yield f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{below}</text>'
        turn = f"translate(12 {height}) rotate(-90)"
        yield f'<text transform="{turn}" text-anchor="middle">{beside}</text>'


def _finite(point: tuple[float, float]) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])
