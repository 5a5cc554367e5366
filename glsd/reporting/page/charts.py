"""Line charts as inline SVG for pages that must open from a file, on a phone, in light and in dark.

All colours are classes of the page's style sheet. Every line ends in its name and last value, and lines differ in their
dashes too, so no colour is needed to read a chart. Long curves are thinned to means with the range of what they stand
for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 360, 200  # of the view box; a chart is as wide as there is room
_LEFT, _TOP, _BOTTOM, _GAP = 44.0, 12.0, 24.0, 8.0
_LETTER, _LABEL = 6.7, 13  # widths of a letter and heights of a label at 11 px
_MAX_POINTS, _MAX_MARKED = 240, 40


@dataclass(frozen=True)
class Line:
    """A named curve; with `errors`, plus or minus so much at each point."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    """None where there is no finite value: the curve has a gap."""
    errors: Sequence[float] | None = None


@dataclass(frozen=True)
class Chart:
    """Curves over a common axis that begins at 0, with named levels to compare them with."""

    title: str
    lines: Sequence[Line]
    levels: Sequence[tuple[str, float]] = ()
    x_name: str = "epoch"


def line_chart(chart: Chart) -> str:
    """The chart as an SVG element.

    Raises:
        ValueError: no line has a finite value.
    """
    curves = [_curve(line) for line in chart.lines]
    if not any(curves):
        raise ValueError(f"the chart {chart.title!r} has no finite value to draw")
    ends = [(line.name, points[-1].y) for line, points in zip(chart.lines, curves, strict=True) if points]
    labels = [f"{name} {number_text(value)}".lstrip() for name, value in [*ends, *chart.levels]]
    right = _WIDTH - _GAP - _LETTER * max(len(label) for label in [*labels, chart.x_name])
    points = [point for curve in curves for point in curve]
    xs = _Axis.around([0.0, *(point.x for point in points)], _LEFT, right, 0.0)
    ys = _Axis.around(
        [value for point in points for value in (point.low, point.high)] + [value for _, value in chart.levels],
        *(_HEIGHT - _BOTTOM, _TOP, 0.06),
    )
    parts = [
        f'<line class="grid" x1="{_LEFT}" x2="{right:.1f}" y1="{ys(tick):.1f}" y2="{ys(tick):.1f}"/>'
        f'<text class="tick" x="{_LEFT - 6}" y="{ys(tick) + 4:.1f}" text-anchor="end">{text}</text>'
        for tick, text in ys.ticks(5)
    ]
    parts += [
        f'<text class="tick" x="{xs(tick):.1f}" y="{_HEIGHT - 7}" text-anchor="middle">{text}</text>'
        for tick, text in xs.ticks(6)
    ]
    parts.append(f'<text class="tick" x="{right + 1.5 * _GAP:.1f}" y="{_HEIGHT - 7}">{escape(chart.x_name)}</text>')
    parts += [
        f'<line class="level" x1="{_LEFT}" x2="{right:.1f}" y1="{ys(value):.1f}" y2="{ys(value):.1f}"/>'
        for _, value in chart.levels
    ]
    drawn = [index for index, curve in enumerate(curves) if curve]
    parts += [part for index in drawn for part in _drawn(curves[index], index, xs, ys)]
    classes = [f"of c{index % 4}" for index in drawn] + ["tick"] * len(chart.levels)
    heights = _spread([ys(value) for _, value in [*ends, *chart.levels]], _TOP, _HEIGHT - _BOTTOM)
    parts += [
        f'<text class="{name}" x="{right + _GAP:.1f}" y="{height + 4:.1f}">{escape(label)}</text>'
        for name, height, label in zip(classes, heights, labels, strict=True)
    ]
    described = escape(f"{chart.title}: {', '.join(labels)}", quote=True)
    head = f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{described}">'
    return f"{head}{''.join(parts)}</svg>"


def number_text(value: float) -> str:
    """A number in three digits, or whole from 1000 on.

    >>> number_text(0.70666), number_text(16640.0)
    ('0.707', '16,640')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@dataclass(frozen=True)
class _Point:
    x: float
    y: float
    low: float
    high: float
    after_gap: bool


def _curve(line: Line) -> list[_Point]:
    """The finite points of a line; of more than fit, the mean and the range of so many neighbours each."""
    errors = [0.0] * len(line.y) if line.errors is None else line.errors
    at_once = -(-len(line.y) // _MAX_POINTS)
    points: list[_Point] = []
    gap = False
    for start in range(0, len(line.y), at_once or 1):
        rows = slice(start, start + at_once)
        known = [(x, y, e) for x, y, e in zip(line.x[rows], line.y[rows], errors[rows], strict=True) if y is not None]
        if not known:
            gap = True
            continue
        x, y, _ = (sum(values) / len(known) for values in zip(*known, strict=True))
        low, high = min(y - e for _, y, e in known), max(y + e for _, y, e in known)
        points.append(_Point(x, y, low, high, gap))
        gap = False
    return points


def _drawn(points: Sequence[_Point], index: int, xs: "_Axis", ys: "_Axis") -> list[str]:
    style = f"c{index % 4} d{index % 4}"
    pieces: list[list[_Point]] = []
    for point in points:
        if point.after_gap or not pieces:
            pieces.append([])
        pieces[-1].append(point)
    parts: list[str] = []
    for piece in pieces:
        if any(point.low < point.high for point in piece):
            outline = [(point.x, point.high) for point in piece] + [(point.x, point.low) for point in reversed(piece)]
            parts.append(f'<polygon class="band {style}" points="{_places(outline, xs, ys)}"/>')
        parts.append(
            f'<polyline class="line {style}" points="{_places([(point.x, point.y) for point in piece], xs, ys)}"/>'
        )
    marked = points if len(points) <= _MAX_MARKED else [piece[0] for piece in pieces if len(piece) == 1]
    parts += [
        f'<circle class="mark {style}" cx="{xs(point.x):.1f}" cy="{ys(point.y):.1f}" r="2.4">'
        f"<title>{number_text(point.x)}: {number_text(point.y)}</title></circle>"
        for point in marked
    ]
    return parts


def _places(values: Sequence[tuple[float, float]], xs: "_Axis", ys: "_Axis") -> str:
    return " ".join(f"{xs(x):.1f},{ys(y):.1f}" for x, y in values)


def _spread(targets: Sequence[float], top: float, bottom: float) -> list[float]:
    """Heights for labels, each as near to its target as a distance of `_LABEL` between them allows."""
    order = sorted(range(len(targets)), key=lambda index: targets[index])
    heights, least = list(targets), top
    for index in order:
        heights[index] = max(heights[index], least)
        least = heights[index] + _LABEL
    most = bottom
    for index in reversed(order):
        heights[index] = min(heights[index], most)
        most = heights[index] - _LABEL
    return heights


@dataclass(frozen=True)
class _Axis:
    """Values [low, high] on pixels [start, end]."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float, margin: float) -> "_Axis":
        """All values with a margin, a share of their range; equal values are in the middle."""
        low, high = min(values), max(values)
        if low == high:
            half = abs(low) / 2 or 0.5
            return cls(low - half, high + half, start, end)
        return cls(low - margin * (high - low), high + margin * (high - low), start, end)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, at_most: int) -> list[tuple[float, str]]:
        """Multiples of 1, 2 or 5 times a power of ten, with their texts."""
        power = math.floor(math.log10(self.high - self.low)) - 1
        for exponent in (power, power + 1, power + 2):
            for factor in (1, 2, 5):
                step = factor * 10.0**exponent
                first, last = math.ceil(self.low / step), math.floor(self.high / step)
                if last - first < at_most:
                    text = ".1e" if exponent < -4 else f",.{max(0, -exponent)}f"
                    return [(count * step, f"{count * step:{text}}") for count in range(first, last + 1)]
        raise AssertionError("a step of ten times the range has at most two multiples in it")
