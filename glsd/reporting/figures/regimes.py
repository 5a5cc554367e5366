"""What a sweep found, drawn: Fig. 4's three panels over the regimes, every trial's dots, every trial's curve.

Trials are the rows of a tidy table (`glsd.reporting.tables`). Groups of trials, such as the settings of Table 1, differ
in colour, in line style and in mark. A collapsed trial has an open mark; one whose loss was not finite, the
paper's NA, has no value and is a cross below.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from glsd.reporting.figures.canvas import INK, MARGIN, TITLE, WIDTH, blank_figure, heading, legend, panel, shortened
from glsd.reporting.figures.curves import LOOKS, Series, curve_panels
from glsd.reporting.tables import SEED, SETTING, axis_text, seed_summary

_PANELS = {
    "knn": ("k-NN accuracy (%)", 100.0),
    "accuracy": ("correspondence accuracy (%)", 100.0),
    "error_px": ("correspondence error (px)", 1.0),
}
"""The measures of Fig. 4 with their titles, and what their values are multiplied by."""
_DODGE, _ASIDE = 0.035, 0.014  # of a group, and of its trials from their mean, as shares of the axis
_LOG_RATIO = 8  # of the largest value to the smallest, from which an axis is logarithmic
_ROW_HEIGHT, _LABEL_WIDTH = 0.3, 3.3


class Mean(NamedTuple):
    """A group of trials at one value of the axis."""

    x: float
    mean: float
    """NaN where no trial has a value."""
    std: float
    """Over seeds; NaN for a single one."""
    collapsed: bool
    """Whether any of them has."""


def regime_means(trials: pd.DataFrame, measure: str, x: str, group: str, unlimited: float) -> dict[str, list[Mean]]:
    """The points of one panel's lines: of each group, means over the trials at every value of the axis, by value.

    Args:
        trials: one row a trial.
        measure: a column of `MEASURES`.
        x: column of numbers; none is at `unlimited`.
        group: column of names.
        unlimited: where trials without a value of `x` are.
    """
    summary = seed_summary(trials.assign(**{x: _places(trials, x, unlimited)}), [group, x]).sort_values(x)
    means: dict[str, list[Mean]] = {str(name): [] for name in dict.fromkeys(trials[group])}
    for row in summary.to_dict("records"):
        value, spread = row.get(f"{measure}_mean", math.nan), row.get(f"{measure}_std", math.nan)
        means[str(row[group])].append(Mean(row[x], value, spread, bool(row["collapsed"])))
    return means


def draw_regimes(
    trials: pd.DataFrame,
    x: str = "data.images_per_class",
    group: str = SETTING,
    unlimited: float | None = None,
) -> Figure:
    """Fig. 4: k-NN accuracy, correspondence accuracy and error over an axis of a sweep, a line for each group.

    Marks are means over the trials of a group, whiskers one standard deviation, faint dots the trials. A dotted line is
    the k-NN accuracy of the backbone as it was initialised.

    Args:
        trials: one row a trial, all alike but in `x`, `group` and the seed.
        x: column of numbers; none, such as a regime of all images, is the last tick.
        group: column of names, such as the settings of Table 1.
        unlimited: where the last tick is, such as how many images of a class there are in all; by default beyond the
            others.

    Raises:
        ValueError: no trial has a value, or there are more groups than lines that can be told apart.
    """
    shown = {key: title for key, title in _PANELS.items() if key in trials and trials[key].notna().any()}
    if not shown:
        raise ValueError(f"there is nothing to draw: no trial has any of {', '.join(_PANELS)}")
    names = _groups(trials, group)
    limited = trials[x].dropna().astype(float)
    last = axis_text(x, None)
    label = axis_name(x) + ("" if unlimited is None else f" ({last}: {unlimited:g})")
    if unlimited is None:
        unlimited = 2 * limited.max() if len(limited) else 1.0
    places = _places(trials, x, unlimited)
    scale = _Scale.of(places)
    figure, grid = curve_panels([title for title, _ in shown.values()], label, above=TITLE + MARGIN)
    for axes, (measure, (_, factor)) in zip(grid, shown.items(), strict=True):
        ticks = {value: f"{value:g}" for value in sorted(limited.unique().tolist())}
        scale.apply(axes, ticks | ({unlimited: last} if trials[x].isna().any() else {}))
        means = regime_means(trials, measure, x, group, unlimited)
        for index, name in enumerate(names):
            rows = trials[trials[group].astype(str) == name]
            shift = (index - (len(names) - 1) / 2) * _DODGE
            _draw_means(axes, means[name], index, factor, scale, shift)
            _draw_trials(
                axes, rows, measure, index, factor, scale.moved(places.loc[rows.index].to_numpy(), shift + _ASIDE)
            )
        if measure == "knn" and "knn_untrained" in trials and trials["knn_untrained"].notna().any():
            level = trials["knn_untrained"].astype(float).groupby(places).mean()
            axes.plot(level.index.to_numpy(), factor * level.to_numpy(), color=INK, linestyle=":", linewidth=0.9)
        axes.margins(y=0.12)
    _legend(figure, names, trials, ["knn_untrained"] if "knn" in shown else [])
    return figure


def draw_comparison(trials: pd.DataFrame, axes: Sequence[str], measure: str = "knn", group: str = SETTING) -> Figure:
    """One measure of every trial as dots: a row for each combination of the axes, a colour and mark for each group.

    Large marks are means over seeds, whiskers one standard deviation.

    Args:
        trials: one row a trial.
        axes: columns that make the trials; without `group` among them all trials are one group.
        measure: a column of Fig. 4.
        group: column of names.

    Raises:
        ValueError: no trial has a value, or there are more groups than marks that can be told apart.
    """
    if measure not in trials or not trials[measure].notna().any():
        raise ValueError(f"there is nothing to draw: no trial has {measure}")
    others = [axis for axis in axes if axis not in (group, SEED)]
    trials = trials.assign(**{group: trials[group].astype(str) if group in axes else "all trials"})
    labels = [_row_label(row, others) for row in trials.to_dict("records")]
    rows = {label: index for index, label in enumerate(dict.fromkeys(labels))}
    trials = trials.assign(row=[rows[label] for label in labels])
    names, (title, factor) = _groups(trials, group), _PANELS[measure]
    above, height = TITLE + MARGIN, _ROW_HEIGHT * len(rows) + 0.15
    figure = blank_figure(above + TITLE + height + 0.42)
    drawn = panel(figure, _LABEL_WIDTH, above + TITLE, WIDTH - _LABEL_WIDTH - 2 * MARGIN, height)
    heading(drawn, title, loc="left")
    for index, name in enumerate(names):
        shift = (index - (len(names) - 1) / 2) * 0.7 / len(names)
        mine = trials[trials[group] == name]
        for mean in regime_means(mine, measure, "row", group, 0.0)[name]:
            _draw_dot(drawn, factor * mean.mean, mean.x + shift, index, mean.collapsed, factor * mean.std)
        y = mine["row"].to_numpy() + shift
        _draw_trials(drawn, mine, measure, index, factor, y, across=True)
    drawn.set_yticks(list(rows.values()), [shortened(label, _LABEL_WIDTH - 0.2) for label in rows])
    drawn.set_ylim(len(rows) - 0.5, -0.5)
    drawn.tick_params(labelsize=6.5, colors=INK, width=0.6, length=2.5)
    drawn.grid(axis="x", color="#E4E4E4", linewidth=0.5)
    drawn.set_axisbelow(True)
    for side in ("top", "right"):
        drawn.spines[side].set_visible(False)
    _legend(figure, names if group in axes else [], trials, [])
    return figure


def draw_trial_curves(curves: Mapping[str, Sequence[tuple[str, Series]]], measure: str) -> Figure:
    """A curve over the epochs for every trial: of each panel by its title, (group, series) of its trials.

    Raises:
        ValueError: there is no panel, or there are more groups than lines that can be told apart.
    """
    names = list(dict.fromkeys(name for panel_curves in curves.values() for name, _ in panel_curves))
    _check_groups(names)
    if not names:
        raise ValueError("there is nothing to draw: no trial has a curve")
    figure, grid = curve_panels(list(curves), "epoch", above=TITLE + MARGIN)
    for axes, panel_curves in zip(grid, curves.values(), strict=True):
        axes.set_ylabel(measure, fontsize=6.5, color=INK, labelpad=1.5)
        for name, (x, y) in panel_curves:
            color, linestyle, mark = LOOKS[names.index(name)]
            values = [math.nan if value is None else value for value in y]
            axes.plot(
                list(x), values, color=color, linestyle=linestyle, marker=mark, markersize=2.6, linewidth=0.9,
                markevery=max(1, len(values) // 6), alpha=0.85,
            )  # fmt: skip
    _legend(figure, names, pd.DataFrame(), [])
    return figure


class _Scale(NamedTuple):
    low: float
    high: float
    logarithmic: bool

    @classmethod
    def of(cls, places: "pd.Series[float]") -> "_Scale":
        low, high = float(places.min()), float(places.max())
        return cls(low, high, low > 0 and high / low >= _LOG_RATIO)

    def moved(self, values: Any, share: float) -> Any:
        """Values moved by a share of the axis."""
        if self.logarithmic:
            return values * (self.high / self.low) ** share
        return values + (self.high - self.low) * share

    def apply(self, axes: Axes, ticks: Mapping[float, str]) -> None:
        """Ticks where trials are, and nowhere else."""
        if self.logarithmic:
            axes.set_xscale("log")
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.xaxis.set_minor_locator(NullLocator())


def axis_name(x: str) -> str:
    """A setting's name as the label of an axis.

    >>> axis_name("data.images_per_class")
    'images per class'
    """
    return x.rpartition(".")[2].replace("_", " ")


def _places(trials: pd.DataFrame, x: str, unlimited: float) -> "pd.Series[float]":
    return trials[x].astype("Float64").fillna(unlimited).astype(float)


def _groups(trials: pd.DataFrame, group: str) -> list[str]:
    names = [str(name) for name in dict.fromkeys(trials[group])]
    _check_groups(names)
    return names


def _check_groups(names: Sequence[str]) -> None:
    if len(names) > len(LOOKS):
        raise ValueError(f"{len(names)} groups cannot be told apart in one figure; draw at most {len(LOOKS)}")


def _draw_means(axes: Axes, means: Sequence[Mean], index: int, factor: float, scale: _Scale, shift: float) -> None:
    color, linestyle, _ = LOOKS[index]
    x = scale.moved(np.array([mean.x for mean in means]), shift)
    axes.plot(x, [factor * mean.mean for mean in means], color=color, linestyle=linestyle, linewidth=1.2, zorder=3)
    for place, mean in zip(x.tolist(), means, strict=True):
        _draw_dot(axes, place, factor * mean.mean, index, mean.collapsed, None, factor * mean.std)


def _draw_dot(
    axes: Axes,
    x: float,
    y: float,
    index: int,
    collapsed: bool,
    x_error: float | None = None,
    y_error: float | None = None,
) -> None:
    """A mean with its whisker, open where a trial has collapsed."""
    color, _, mark = LOOKS[index]
    axes.errorbar(
        x, y, xerr=_finite(x_error), yerr=_finite(y_error), color=color, marker=mark, markersize=4.2,
        markerfacecolor="white" if collapsed else color, markeredgewidth=1.0, elinewidth=0.9, capsize=2.0, zorder=4,
    )  # fmt: skip


def _finite(error: float | None) -> float | None:
    return None if error is None or math.isnan(error) else error


def _draw_trials(
    axes: Axes, rows: pd.DataFrame, measure: str, index: int, factor: float, places: Any, across: bool = False
) -> None:
    """Single trials at their places, and a cross for those whose loss was not finite; `across` swaps x and y."""
    color = LOOKS[index][0]
    values = factor * rows[measure].astype(float).to_numpy()
    collapsed = (rows["verdict"] == "collapsed").to_numpy() if "verdict" in rows else np.zeros(len(rows), bool)
    lost = (rows["status"] == "not finite").to_numpy() if "status" in rows else np.zeros(len(rows), bool)
    for chosen, face in ((~collapsed, color), (collapsed, "none")):
        x, y = (values, places) if across else (places, values)
        axes.scatter(x[chosen], y[chosen], s=6, facecolors=face, edgecolors=color, linewidths=0.6, alpha=0.55, zorder=2)
    if lost.any():
        bottom = np.full(lost.sum(), 0.035)
        x, y = (bottom, places[lost]) if across else (places[lost], bottom)
        transform = axes.get_yaxis_transform() if across else axes.get_xaxis_transform()
        axes.scatter(x, y, s=28, marker="x", color=color, linewidths=1.3, transform=transform, zorder=5, clip_on=False)


def _row_label(row: Mapping[Any, Any], others: Sequence[str]) -> str:
    """The values of the axes; a name speaks for itself, a number needs its axis."""
    texts = [(axis, axis_text(axis, row[axis]), isinstance(row[axis], str)) for axis in others]
    return ", ".join(text if speaks else f"{axis_name(axis)} {text}" for axis, text, speaks in texts) or "all"


def _legend(figure: Figure, names: Sequence[str], trials: pd.DataFrame, levels: Sequence[str]) -> None:
    """The groups, and of the other marks those that the figure has."""
    artists: list[Artist] = []
    texts: list[str] = []
    for index, name in enumerate(names):
        color, linestyle, mark = LOOKS[index]
        artists.append(Line2D([], [], color=color, linestyle=linestyle, marker=mark, markersize=4.5, linewidth=1.2))
        texts.append(name)
    if any(level in trials and trials[level].notna().any() for level in levels):
        artists.append(Line2D([], [], color=INK, linestyle=":", linewidth=0.9))
        texts.append("untrained")
    if "verdict" in trials and (trials["verdict"] == "collapsed").any():
        artists.append(Line2D([], [], color=INK, linestyle="", marker="o", markersize=4.5, markerfacecolor="white"))
        texts.append("collapsed")
    if "status" in trials and (trials["status"] == "not finite").any():
        artists.append(Line2D([], [], color=INK, linestyle="", marker="x", markersize=4.5))
        texts.append("NA")
    if artists:
        room = WIDTH / len(artists) - 0.6
        legend(figure, artists, texts, room, loc="upper center", ncols=len(artists), handlelength=4)
