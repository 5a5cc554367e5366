"""What a sweep found, drawn: Fig. 4's three panels over the regimes, and the dots of all trials.

Trials are the rows of a tidy table (`glsd.reporting.tables`). Groups of trials, such as the settings of Table 1, differ
in colour, in line style and in mark. A collapsed trial has an open mark. One whose loss was not finite, the paper's NA,
has no value and is a cross below.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from glsd.reporting.figures import canvas
from glsd.reporting.figures.charts import LOOKS, check_groups, curve_panels, group_legend, style_axes
from glsd.reporting.tables import SEED, SETTING, axis_text, holds

_PANELS = {
    "knn": ("k-NN accuracy (%)", 100.0),
    "accuracy": ("correspondence accuracy (%)", 100.0),
    "error_px": ("correspondence error (px)", 1.0),
}
"""The measures of Fig. 4 with their titles, and what their values are multiplied by."""
_DODGE, _ASIDE = 0.035, 0.014  # of a group, and of its trials from their mean, as shares of the axis
_LOG_RATIO = 8  # of the largest value to the smallest, from which an axis is logarithmic
_ROW_HEIGHT, _LABEL_WIDTH = 0.3, 3.3


def draw_regimes(
    trials: pd.DataFrame, x: str = "data.images_per_class", group: str = SETTING, unlimited: float | None = None
) -> Figure:
    """Fig. 4: k-NN accuracy, correspondence accuracy and error over an axis of a sweep, a line for each group.

    Marks are means over the trials of a group, whiskers one standard deviation, faint dots the trials. A dotted line is
    the k-NN accuracy of the backbone as it was initialised.

    The trials are alike but in `x`, a column of numbers, in `group`, a column of names, and in the seed. No number,
    such as the regime of all images, is the last tick. It lies at `unlimited`, such as the images of a class in all, or
    beyond the others.

    Raises:
        ValueError: no trial has a value, or there are more groups than lines that can be told apart.
    """
    shown = {key: title for key, title in _PANELS.items() if key in trials and trials[key].notna().any()}
    if not shown:
        raise ValueError(f"there is nothing to draw: no trial has any of {', '.join(_PANELS)}")
    names = _groups(trials[group])
    limited = trials[x].dropna().astype(float)
    last = axis_text(x, None)
    label = axis_name(x) + ("" if unlimited is None else f" ({last}: {unlimited:g})")
    if unlimited is None:
        unlimited = 2 * limited.max() if len(limited) else 1.0
    ticks = {value: f"{value:g}" for value in sorted(limited.unique())}
    ticks |= {unlimited: last} if trials[x].isna().any() else {}
    places = trials[x].astype("Float64").fillna(unlimited).astype(float)
    low, high = places.min(), places.max()
    logarithmic = low > 0 and high / low >= _LOG_RATIO
    figure, grid = curve_panels([title for title, _ in shown.values()], above=canvas.TITLE + canvas.MARGIN)
    for axes, measure in zip(grid, shown, strict=True):
        axes.set_xscale("log" if logarithmic else "linear")
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(label, fontsize=canvas.FONT_SIZE, color=canvas.INK, labelpad=1.5)
        for index, name in enumerate(names):
            rows = trials[trials[group].astype(str) == name]
            shift = (index - (len(names) - 1) / 2) * _DODGE
            at_mean, at_trial = (
                places[rows.index] * (high / low) ** share if logarithmic else places[rows.index] + (high - low) * share
                for share in (shift, shift + _ASIDE)
            )
            _draw_group(axes, rows, measure, index, at_mean, at_trial)
        if measure == "knn" and _has_untrained(trials):
            level = 100 * trials["knn_untrained"].astype(float).groupby(places).mean()
            axes.plot(level.index, level, color=canvas.INK, linestyle=":", linewidth=0.9)
        axes.margins(y=0.12)
    group_legend(figure, names, _marks(trials, "knn" in shown))
    return figure


def draw_comparison(trials: pd.DataFrame, axes: Sequence[str], group: str = SETTING) -> Figure:
    """k-NN accuracy of every trial as dots: a row for each combination of the axes, a colour and mark for each group.

    Large marks are means over seeds, whiskers one standard deviation. Where the column `group` is not among the axes,
    all trials are one group.

    Raises:
        ValueError: no trial has a value, or there are more groups than marks that can be told apart.
    """
    if "knn" not in trials or not trials["knn"].notna().any():
        raise ValueError("there is nothing to draw: no trial has knn")
    others = [axis for axis in axes if axis not in (group, SEED)]
    of_trial = trials[group].astype(str) if group in axes else pd.Series("all trials", index=trials.index)
    labels = pd.Series([_row_label(row, others) for row in trials.to_dict("records")], index=trials.index)
    rows, names = list(dict.fromkeys(labels)), _groups(of_trial)
    above, height = canvas.TITLE + canvas.MARGIN, _ROW_HEIGHT * len(rows) + 0.15
    figure = canvas.blank_figure(above + canvas.TITLE + height + 0.42)
    drawn = canvas.panel(
        figure, _LABEL_WIDTH, above + canvas.TITLE, canvas.WIDTH - _LABEL_WIDTH - 2 * canvas.MARGIN, height
    )
    canvas.heading(drawn, _PANELS["knn"][0], loc="left")
    for index, name in enumerate(names):
        shift = (index - (len(names) - 1) / 2) * 0.7 / len(names)
        mine = trials[of_trial == name]
        places = labels[mine.index].map(rows.index) + shift
        _draw_group(drawn, mine, "knn", index, places, places, across=True)
    drawn.set_yticks(range(len(rows)), [canvas.shortened(label, _LABEL_WIDTH - 0.2) for label in rows])
    drawn.set_ylim(len(rows) - 0.5, -0.5)
    style_axes(drawn)
    drawn.grid(visible=False, axis="y")
    group_legend(figure, names if group in axes else [], _marks(trials, False))
    return figure


def axis_name(x: str) -> str:
    """A setting's name as the label of an axis.

    >>> axis_name("data.images_per_class")
    'images per class'
    """
    return x.rpartition(".")[2].replace("_", " ")


def _groups(names: "pd.Series[str]") -> list[str]:
    found = [str(name) for name in dict.fromkeys(names)]
    check_groups(found)
    return found


def _draw_group(
    axes: Axes,
    trials: pd.DataFrame,
    measure: str,
    index: int,
    at_mean: "pd.Series[float]",
    at_trial: "pd.Series[float]",
    across: bool = False,
) -> None:
    """The means of a group with their whiskers, and its trials; `across` swaps x and y."""
    color, linestyle, mark = LOOKS[index]
    values = _PANELS[measure][1] * trials[measure].astype(float)
    collapsed, lost = holds(trials, "verdict", "collapsed"), holds(trials, "status", "not finite")
    means = pd.DataFrame({"value": values, "collapsed": collapsed}).groupby(at_mean)
    found = means.agg(mean=("value", "mean"), std=("value", "std"), collapsed=("collapsed", "any"))

    def places(at: Any, value: Any) -> tuple[Any, Any]:
        return (value, at) if across else (at, value)

    if not across:
        axes.plot(found.index, found["mean"], color=color, linestyle=linestyle, linewidth=1.2, zorder=3)
    error: dict[str, Any]
    for at, mean, std, is_open in found[found["mean"].notna()].itertuples():
        error = {} if pd.isna(std) else {"xerr" if across else "yerr": std}
        axes.errorbar(
            *places(at, mean), color=color, marker=mark, markersize=4.2,
            markerfacecolor="white" if is_open else color, markeredgewidth=1.0, elinewidth=0.9, capsize=2.0, zorder=4,
            **error,
        )  # fmt: skip
    for chosen, face in ((~collapsed, color), (collapsed, "none")):
        x, y = places(at_trial[chosen], values[chosen])
        axes.scatter(x, y, s=6, facecolors=face, edgecolors=color, linewidths=0.6, alpha=0.55, zorder=2)
    if lost.any():
        x, y = places(at_trial[lost], np.full(lost.sum(), 0.035))
        transform = axes.get_yaxis_transform() if across else axes.get_xaxis_transform()
        axes.scatter(x, y, s=28, marker="x", color=color, linewidths=1.3, transform=transform, zorder=5, clip_on=False)


def _has_untrained(trials: pd.DataFrame) -> bool:
    return "knn_untrained" in trials and bool(trials["knn_untrained"].notna().any())


def _row_label(row: Mapping[Any, Any], others: Sequence[str]) -> str:
    """The values of the axes; a name speaks for itself, a number needs its axis."""
    texts = [(axis, axis_text(axis, row[axis]), isinstance(row[axis], str)) for axis in others]
    return ", ".join(text if speaks else f"{axis_name(axis)} {text}" for axis, text, speaks in texts) or "all"


def _marks(trials: pd.DataFrame, with_level: bool) -> list[tuple[Artist, str]]:
    """The marks of a figure that stand for no group, with what they mean."""
    marks: list[tuple[Artist, str]] = []
    if with_level and _has_untrained(trials):
        marks.append((Line2D([], [], color=canvas.INK, linestyle=":", linewidth=0.9), "untrained"))
    if holds(trials, "verdict", "collapsed").any():
        hollow = Line2D([], [], color=canvas.INK, linestyle="", marker="o", markersize=4.5, markerfacecolor="white")
        marks.append((hollow, "collapsed"))
    if holds(trials, "status", "not finite").any():
        marks.append((Line2D([], [], color=canvas.INK, linestyle="", marker="x", markersize=4.5), "NA"))
    return marks
