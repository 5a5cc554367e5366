"""Curves over training: what a run has logged, and whether runs collapse (Sec. 4.6; Fig. 7 shows what that looks like).

Several lines of a panel differ in colour, in line style and in mark.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from glsd.reporting.figures.canvas import (
    DASHED,
    FONT_SIZE,
    INK,
    MARGIN,
    TITLE,
    WIDTH,
    LineStyle,
    blank_figure,
    heading,
    legend,
    panel,
)

Series = tuple[Sequence[float | int], Sequence[float | int | None]]
"""Steps or epochs, and the values there; None and NaN are gaps."""

LOOKS: tuple[tuple[str, LineStyle, str], ...] = (
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
_MARKS = 8  # of a line, about


class _Sign(NamedTuple):
    title: str
    is_share: bool = False
    """Whether the values are in [0, 1]."""
    reference: str = ""
    """What a value of 1 means, where a line is drawn there."""


_COLLAPSE = {
    "k_star_entropy": _Sign("entropy of matched k* / ln K", is_share=True),
    "k_star_distinct": _Sign("distinct k* / K", is_share=True),
    "feature_std": _Sign("feature standard deviation", is_share=True, reference="isotropic"),
    "effective_rank": _Sign("effective rank / largest possible", is_share=True),
    "entropy_global": _Sign("output entropy / ln I, head h̄", is_share=True, reference="uniform"),
    "entropy_dense": _Sign("output entropy / ln I, head h", is_share=True, reference="uniform"),
    "information_global": _Sign("output information, head h̄", is_share=True),
    "information_dense": _Sign("output information, head h", is_share=True),
    "loss": _Sign("loss"),
}

_LOGGED = {
    "loss": ({"loss": "loss", "loss_global": "global", "loss_local": "local"}, 1.0),
    "k-NN accuracy (%)": ({"knn": "k-NN"}, 100.0),
    "learning rate": ({"lr": "learning rate"}, 1.0),
    "teacher momentum": ({"teacher_momentum": "momentum"}, 1.0),
    "teacher temperature": ({"teacher_temperature": "temperature"}, 1.0),
    "images per second": ({"images_per_s": "images/s"}, 1.0),
}
"""The metrics of each panel with their names, and what the values are multiplied by."""


def draw_collapse(histories: Mapping[str, Mapping[str, Series]], axis: Literal["step", "epoch"] = "step") -> Figure:
    """Signs of collapse over training, a panel for each and a line for each run (Sec. 4.6).

    Args:
        histories: of each run by its name, the series by their names in `collapse_metrics`, and `loss`; those that no
            run has get no panel.
        axis: what the first numbers of the series count.

    Raises:
        ValueError: no run has any of the series, or there are more runs than lines that can be told apart.
    """
    if len(histories) > len(LOOKS):
        raise ValueError(f"{len(histories)} runs cannot be told apart in one figure; draw at most {len(LOOKS)}")
    shown = {key: sign for key, sign in _COLLAPSE.items() if any(key in history for history in histories.values())}
    if not shown:
        raise ValueError(f"there is nothing to draw: no run has any of {', '.join(_COLLAPSE)}")
    figure, grid = curve_panels([sign.title for sign in shown.values()], axis, above=TITLE + MARGIN)
    lines: dict[str, Line2D] = {}
    for axes, (key, sign) in zip(grid, shown.items(), strict=True):
        for (name, history), look in zip(histories.items(), LOOKS, strict=False):
            if key in history:
                lines[name] = _draw_line(axes, *_points(*history[key]), look, name)
        if sign.is_share:
            axes.set_ylim(-0.05, max(1.12, axes.get_ylim()[1]))
        if sign.reference:
            axes.axhline(1.0, color=INK, linewidth=0.7, linestyle=DASHED, zorder=1)
            axes.text(
                0.98, 1.0, sign.reference, transform=axes.get_yaxis_transform(), ha="right", va="bottom",
                fontsize=6, color=INK,
            )  # fmt: skip
    names = [name for name in histories if name in lines]
    room = WIDTH / len(names) - 0.7
    legend(figure, [lines[name] for name in names], names, room, loc="upper center", ncols=len(names), handlelength=4)
    return figure


def draw_curves(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """The loss and its parts, k-NN, schedules and speed of a run over its steps, from the lines of its metrics.

    Raises:
        ValueError: no line has any of these.
    """
    found = {
        name: {
            label: _points(
                [line["step"] for line in metrics if key in line],
                [None if line[key] is None else scale * line[key] for line in metrics if key in line],
            )
            for key, label in keys.items()
            if any(key in line for line in metrics)
        }
        for name, (keys, scale) in _LOGGED.items()
    }
    shown = {name: lines for name, lines in found.items() if lines}
    if not shown:
        raise ValueError("there is nothing to draw: no line of the metrics has a loss, a k-NN accuracy or a schedule")
    figure, grid = curve_panels(list(shown), "step")
    for axes, lines in zip(grid, shown.values(), strict=True):
        for (label, (x, y)), look in zip(lines.items(), LOOKS, strict=False):
            _draw_line(axes, x, y, look, label)
        if len(lines) > 1:
            legend(axes, axes.lines, list(lines), WIDTH, handlelength=4)
    return figure


def curve_panels(titles: Sequence[str], x_label: str, above: float = 0.0) -> tuple[Figure, list[Axes]]:
    """Panels in rows of three, or fewer where there are fewer, with `above` inches of room over them."""
    columns = min(_COLUMNS, len(titles))
    rows = math.ceil(len(titles) / columns)
    width, height = (WIDTH - MARGIN) / columns, TITLE + _PANEL_HEIGHT + _AXIS_HEIGHT
    figure = blank_figure(above + rows * height)
    grid = []
    for index, text in enumerate(titles):
        row, column = divmod(index, columns)
        left, top = column * width + _AXIS_WIDTH, above + row * height + TITLE
        axes = panel(figure, left, top, width - _AXIS_WIDTH - MARGIN, _PANEL_HEIGHT)
        heading(axes, text, loc="left")
        axes.set_xlabel(x_label, fontsize=FONT_SIZE, color=INK, labelpad=1.5)
        axes.tick_params(labelsize=6.5, colors=INK, width=0.6, length=2.5)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # no common factor above the axis
        axes.grid(color="#E4E4E4", linewidth=0.5)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        grid.append(axes)
    return figure, grid


def _points(
    x: Sequence[float | int], y: Sequence[float | int | None]
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    return np.array(x, np.float64), np.array([math.nan if value is None else value for value in y], np.float64)


def _draw_line(
    axes: Axes,
    x: Float[np.ndarray, " points"],
    y: Float[np.ndarray, " points"],
    look: tuple[str, LineStyle, str],
    label: str,
) -> Line2D:
    color, linestyle, mark = look
    (line,) = axes.plot(
        x, y, color=color, linestyle=linestyle, marker=mark, markersize=3.2, linewidth=1.1, label=label,
        markevery=max(1, round(len(x) / _MARKS)),
    )  # fmt: skip
    return line
