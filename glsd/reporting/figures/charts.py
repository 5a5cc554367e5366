"""Charts of curves: a single one as SVG for a page, or several in a figure.

Lines of a chart differ in colour, in line style and in mark. Long curves are thinned to means with the range of the
values that they stand for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from glsd.reporting.figures import canvas
from glsd.reporting.numbers import number_text

Level = tuple[str, float]
"""A value to compare curves with: (what it means, value)."""
LOOKS: tuple[tuple[str, canvas.LineStyle, str], ...] = (
    ("#0072B2", "-", "o"),
    ("#D55E00", (0.0, (4.0, 1.5)), "s"),
    ("#009E73", (0.0, (1.0, 1.2)), "^"),
    ("#CC79A7", (0.0, (5.0, 1.5, 1.0, 1.5)), "D"),
    ("#56B4E9", "-", "v"),
    ("#E69F00", (0.0, (4.0, 1.5)), "P"),
    ("#222222", (0.0, (1.0, 1.2)), "X"),
)
"""Colour, line and mark of the first, second, ... line."""

_COLUMNS, _PANEL_HEIGHT, _AXIS_WIDTH, _AXIS_HEIGHT = 3, 1.45, 0.46, 0.42
_SMALL, _LETTER, _LABEL_HEIGHT, _OFFSET = 6.5, 0.056, 0.125, 0.05
"""The points of the small font, inches of its letters and lines, and between the axes and their labels."""
_MOST_ROOM = 1.8  # inches for labels
_MAX_POINTS, _MARKS, _HOVERED = 240, 8, 40  # of a line


@dataclass(frozen=True)
class Line:
    """A named curve; with `errors`, plus or minus so much at each point."""

    name: str
    x: Sequence[float | int]
    y: Sequence[float | int | None]
    """None and NaN are gaps."""
    errors: Sequence[float] | None = None


@dataclass(frozen=True)
class Chart:
    """Curves over a common axis that begins at 0, with levels to compare them with."""

    title: str
    lines: Sequence[Line]
    levels: Sequence[Level] = ()
    x_name: str = "epoch"
    y_name: str = ""


def draw_charts(charts: Sequence[Chart], groups: Sequence[str] = ()) -> Figure:
    """Charts in rows of three.

    `groups` are names of lines that look alike in all charts and are explained once, above them. Without them each line
    ends in its name and last value.

    Raises:
        ValueError: there is no chart, one has no finite value, or there are more groups than can be told apart.
    """
    if not charts:
        raise ValueError("there is nothing to draw: nothing has been measured")
    check_groups(groups)
    curves = [_curves(chart) for chart in charts]
    labels = [_labels(chart, own, groups) for chart, own in zip(charts, curves, strict=True)]
    above = (canvas.TITLE + canvas.MARGIN) * bool(groups)
    figure, grid = curve_panels([chart.title for chart in charts], above, list(map(_room, labels)))
    for axes, chart, own, texts in zip(grid, charts, curves, labels, strict=True):
        _draw(axes, chart, own, groups)
        _label(axes, texts)
    group_legend(figure, groups)
    return figure


def chart_svg(chart: Chart) -> str:
    """The chart as an SVG element in the colours of the page around it; its points name their values.

    Raises:
        ValueError: no line has a finite value.
    """
    width = (canvas.WIDTH - canvas.MARGIN) / _COLUMNS
    figure = Figure(figsize=(width, canvas.MARGIN + _PANEL_HEIGHT + _AXIS_HEIGHT))
    curves = _curves(chart)
    labels = _labels(chart, curves, ())
    axes = _curve_axes(figure, _AXIS_WIDTH, canvas.MARGIN, width - _AXIS_WIDTH - _room(labels))
    _draw(axes, chart, curves, ())
    _label(axes, labels)
    hints = []
    for points in curves:
        shown = points[points["y"].notna()]
        shown = shown[:: max(1, math.ceil(len(shown) / _HOVERED))]
        axes.plot(shown["x"], shown["y"], "o", color=canvas.INK, markersize=6, alpha=0, gid="hints")
        hints += [f"{number_text(x)}: {number_text(y)}" for x, y in zip(shown["x"], shown["y"], strict=True)]
    return canvas.inline_svg(figure, f"{chart.title}: {', '.join(text for text, _, _ in labels)}", hints)


def curve_panels(
    titles: Sequence[str], above: float = 0.0, rooms: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """Panels in rows of three, or fewer, with inches of room above all of them and at the right of each."""
    columns = min(_COLUMNS, len(titles))
    width, height = (canvas.WIDTH - canvas.MARGIN) / columns, canvas.TITLE + _PANEL_HEIGHT + _AXIS_HEIGHT
    figure = canvas.blank_figure(above + math.ceil(len(titles) / columns) * height)
    grid = []
    for index, (text, room) in enumerate(zip(titles, rooms or [canvas.MARGIN] * len(titles), strict=True)):
        row, column = divmod(index, columns)
        left, top = column * width + _AXIS_WIDTH, above + row * height + canvas.TITLE
        axes = _curve_axes(figure, left, top, width - _AXIS_WIDTH - room)
        canvas.heading(axes, text, loc="left")
        grid.append(axes)
    return figure, grid


def style_axes(axes: Axes) -> None:
    """Small ticks, a faint grid, and no frame."""
    axes.tick_params(labelsize=_SMALL, colors=canvas.INK, width=0.6, length=2.5)
    axes.grid(color="#E4E4E4", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def check_groups(names: Sequence[str]) -> None:
    """Refuse more groups than there are looks."""
    if len(names) > len(LOOKS):
        raise ValueError(f"{len(names)} groups cannot be told apart in one figure; draw at most {len(LOOKS)}")


def group_legend(figure: Figure, names: Sequence[str], others: Sequence[tuple[Artist, str]] = ()) -> None:
    """The looks of the groups and other marks in a line above all panels."""
    keys: list[tuple[Artist, str]] = [
        (Line2D([], [], color=color, linestyle=linestyle, marker=mark, markersize=4.5, linewidth=1.2), name)
        for name, (color, linestyle, mark) in zip(names, LOOKS, strict=False)
    ]
    keys += others
    if keys:
        artists, texts = zip(*keys, strict=True)
        canvas.legend(
            figure, artists, texts, canvas.WIDTH / len(keys) - 0.6, loc="upper center", ncols=len(keys), handlelength=4
        )


def _curve_axes(figure: Figure, left: float, top: float, width: float) -> Axes:
    axes = canvas.panel(figure, left, top, width, _PANEL_HEIGHT)
    style_axes(axes)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # no common factor above the axis
    return axes


def _thinned(line: Line) -> pd.DataFrame:
    """x, y, low and high of at most 240 points: means of neighbours, and their range with the errors."""
    points = pd.DataFrame({"x": line.x, "y": line.y}, dtype="float64")
    errors = 0.0 if line.errors is None else np.asarray(line.errors)
    points = points.assign(low=points["y"] - errors, high=points["y"] + errors)
    points[points["y"].isna()] = math.nan
    at_once = max(1, math.ceil(len(points) / _MAX_POINTS))
    return points.groupby(np.arange(len(points)) // at_once).agg(
        {"x": "mean", "y": "mean", "low": "min", "high": "max"}
    )


def _curves(chart: Chart) -> list[pd.DataFrame]:
    curves = [_thinned(line) for line in chart.lines]
    if not any(points["y"].notna().any() for points in curves):
        raise ValueError(f"the chart {chart.title!r} has no finite value to draw")
    return curves


def _draw(axes: Axes, chart: Chart, curves: Sequence[pd.DataFrame], groups: Sequence[str]) -> None:
    for index, (line, points) in enumerate(zip(chart.lines, curves, strict=True)):
        color, linestyle, mark = LOOKS[groups.index(line.name) if groups else index]
        known = points["y"].notna().to_numpy()
        alone = known & ~np.r_[False, known[:-1]] & ~np.r_[known[1:], False]
        marked = alone | (np.arange(len(known)) % max(1, round(len(known) / _MARKS)) == 0)
        axes.plot(
            points["x"], points["y"], color=color, linestyle=linestyle, marker=mark, markersize=3.2, linewidth=1.1,
            markevery=np.flatnonzero(marked).tolist(), label=line.name,
        )  # fmt: skip
        if (points["low"] < points["high"]).any():
            axes.fill_between(points["x"], points["low"], points["high"], color=color, alpha=0.18, linewidth=0)
    for _, value in chart.levels:
        axes.axhline(value, color=canvas.INK, linewidth=0.7, linestyle=":", zorder=1)
    axes.set_xlim(left=0)
    axes.margins(y=0.06)
    axes.set_xlabel(chart.x_name, fontsize=canvas.FONT_SIZE, color=canvas.INK, labelpad=1.5)
    axes.set_ylabel(chart.y_name, fontsize=_SMALL, color=canvas.INK, labelpad=1.5)


def _labels(chart: Chart, curves: Sequence[pd.DataFrame], groups: Sequence[str]) -> list[tuple[str, float, str]]:
    """(text, value, colour) of what stands at the right of a chart: ends of lines that no legend names, and levels."""
    ends = [
        (line.name, points["y"].dropna().iloc[-1], color)
        for line, points, (color, _, _) in zip(chart.lines, curves, LOOKS, strict=False)
        if points["y"].notna().any() and not groups
    ]
    named = [*ends, *((name, value, canvas.INK) for name, value in chart.levels if name)]
    room = _MOST_ROOM - 0.068 * 8  # the name is cut, not its value
    return [
        (f"{canvas.shortened(name, room)} {number_text(value)}".lstrip(), value, color) for name, value, color in named
    ]


def _room(labels: Sequence[tuple[str, float, str]]) -> float:
    """Inches that the labels need."""
    return canvas.MARGIN + max([0.0, *(_OFFSET + _LETTER * len(text) for text, _, _ in labels)])


def _label(axes: Axes, labels: Sequence[tuple[str, float, str]]) -> None:
    """Texts at the right of the axes, each as near to its value as the others allow."""
    low, high = axes.get_ylim()
    heights = [(value - low) / (high - low) for _, value, _ in labels]
    order = sorted(range(len(labels)), key=lambda index: heights[index])
    apart = _LABEL_HEIGHT / _PANEL_HEIGHT
    least, most = 0.0, 1.0
    for index in order:
        heights[index] = max(heights[index], least)
        least = heights[index] + apart
    for index in reversed(order):
        heights[index] = min(heights[index], most)
        most = heights[index] - apart
    for (text, _, color), height in zip(labels, heights, strict=True):
        axes.annotate(
            text, (1, height), xycoords="axes fraction", xytext=(72 * _OFFSET, 0), textcoords="offset points",
            va="center", color=color, fontsize=_SMALL, fontweight="normal" if color == canvas.INK else "bold",
            parse_math=False,
        )  # fmt: skip
