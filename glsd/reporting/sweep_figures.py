"""What a sweep's page shows of its trials, as figures over one axis after another."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from glsd.reporting.figures.charts import LOOKS, Chart, Line, draw_charts
from glsd.reporting.figures.curves import Series, draw_collapse
from glsd.reporting.figures.regimes import axis_name, draw_comparison, draw_regimes
from glsd.reporting.sweep_table import Together, goes_with
from glsd.reporting.tables import SEED, SETTING, axis_text
from glsd.runs.sweep import TrialState

COMPARED = ("knn", "accuracy", "error_px")
_REGIME, _ALL = "data.images_per_class", "all trials"
_MAX_PANELS, _MAX_TICKS, _MAX_FIGURES = 12, 12, 6
_REGIMES_CAPTION = (
    "Means over seeds with one standard deviation, faint dots are the trials. Open marks have collapsed; a cross is a "
    "trial whose loss was not finite; the dotted line is the backbone before training."
)
_DOTS_CAPTION = "Large marks are means over seeds with one standard deviation, faint dots the trials."


class Made(NamedTuple):
    """A figure, the stem of its files, its title and caption."""

    stem: str
    figure: Figure
    title: str
    caption: str


class SweepFigures:
    """The figures of a sweep: one of its axes is drawn across, one as lines, the others as panels or as figures."""

    def __init__(
        self, trials: pd.DataFrame, axes: Sequence[str], states: Sequence[TrialState], together: Together
    ) -> None:
        self._axes, self._metrics = axes, {state.name: state.metrics for state in states}
        self._companions = _companions(trials, axes, together)
        left_out = [axis for axes in self._companions.values() for axis in axes]
        settings = [axis for axis in axes if axis not in (*left_out, SEED)]
        few = [axis for axis in settings if trials[axis].nunique(dropna=False) <= len(LOOKS)]
        self._x = _across(trials, settings)
        groups = [axis for axis in few if axis != self._x]
        self._group = SETTING if SETTING in groups else next(iter(groups), _ALL)
        self._others = [axis for axis in settings if axis not in (self._group, self._x)]
        # Over epochs there is no axis across, so that its values are lines where nothing else is.
        self._lines = self._x if self._group == _ALL and self._x in few else self._group
        self._panels = [axis for axis in settings if axis != self._lines]
        names = [_ALL] * len(trials) if self._group == _ALL else _texts(trials, self._group)
        self._trials = trials.assign(**{self._group: names})

    def results(self) -> list[Made]:
        """Fig. 4 where an axis is numeric, for each combination of the remaining axes; else every trial as a dot."""
        made: list[Made] = []
        for label, part in _parts(self._trials, self._others):
            if self._x is None or not part[[*COMPARED]].notna().any(axis=None):
                continue
            figure = draw_regimes(part, self._x, self._group, _images_per_class(part) if self._x == _REGIME else None)
            stem = f"regimes_{len(made) + 1}" if self._others else "regimes"
            title = f"Over {self._name(self._x)}" + (f", {label}" if label else "")
            made.append(Made(stem, figure, title, _REGIMES_CAPTION))
        if 0 < len(made) <= _MAX_FIGURES or not self._trials["knn"].notna().any():
            return made
        figure = draw_comparison(self._trials, self._axes, group=self._group)
        return [Made("comparison", figure, "k-NN of all trials", _DOTS_CAPTION)]

    def curves(self) -> list[Made]:
        """k-NN over the epochs of every trial."""
        parts = _parts(self._trials, self._panels)
        if len(parts) > _MAX_PANELS:
            parts = [("", self._trials)]
        charts = [Chart(label or _ALL, self._tests(part), y_name="k-NN (%)") for label, part in parts]
        charts = [chart for chart in charts if chart.lines]
        if not charts:
            return []
        names = list(dict.fromkeys(line.name for chart in charts for line in chart.lines))
        caption = f"A line for every trial, by {self._name(self._lines)}."
        return [Made("curves", draw_charts(charts, names), "k-NN while training", caption)]

    def collapse(self) -> list[Made]:
        """The signs of collapse: a figure for each setting, a line for each combination of the other axes."""
        lines = self._panels or [self._lines]
        caption = f"Means over seeds of what the teacher still tells apart, by {' and '.join(map(self._name, lines))}."
        made: list[Made] = []
        for label, part in _parts(self._trials, [self._lines] if self._panels else []):
            histories = {
                _values(rows, lines): _history([self._metrics[trial] for trial in rows["trial"]])
                for _, rows in _parts(part, lines)
            }
            histories = {line: history for line, history in histories.items() if history}
            if 0 < len(histories) <= len(LOOKS):
                title = "Signs of collapse" + (f", {label}" if label else "")
                made.append(Made(f"collapse_{len(made) + 1}", draw_collapse(histories, "epoch"), title, caption))
        return made

    def _tests(self, trials: pd.DataFrame) -> list[Line]:
        """The k-NN of each trial while it trained."""
        lines = []
        for trial, name in zip(trials["trial"], _texts(trials, self._lines), strict=True):
            tested = [line for line in self._metrics[trial] if line.get("knn") is not None]
            if len(tested) > 1:
                x, y = [line.get("epoch", 0) for line in tested], [100 * line["knn"] for line in tested]
                lines.append(Line(name, x, y))
        return lines

    def _name(self, axis: str) -> str:
        """The axis and what goes together with it."""
        return " with ".join(map(axis_name, [axis, *self._companions.get(axis, [])]))


def _companions(trials: pd.DataFrame, axes: Sequence[str], together: Together) -> dict[str, list[str]]:
    """One of the axes that the grid sets together, with the others, which figures need not tell apart."""
    found: dict[str, list[str]] = {}
    for keys in together:
        members = [axis for axis in axes if axis in keys]
        if members:
            first = min(members, key=lambda axis: (axis not in (SETTING, _REGIME), -trials[axis].nunique()))
            found[first] = [axis for axis in members if axis != first and goes_with(trials, axis, first)]
    return found


def _parts(trials: pd.DataFrame, axes: Sequence[str]) -> list[tuple[str, pd.DataFrame]]:
    """(what they have in common, trials) of each combination of the axes; all of them where there is no axis."""
    columns = [[f"{axis_name(axis)} {text}" for text in _texts(trials, axis)] for axis in axes]
    labels = [", ".join(texts) for texts in zip(*columns, strict=True)] if axes else [""] * len(trials)
    return [(label, trials[[own == label for own in labels]]) for label in dict.fromkeys(labels)]


def _values(trials: pd.DataFrame, axes: Sequence[str]) -> str:
    """What the trials have in common, without the names of the axes."""
    return ", ".join(_texts(trials, axis)[0] for axis in axes)


def _texts(trials: pd.DataFrame, axis: str) -> list[str]:
    return [axis_text(axis, value) for value in trials[axis].tolist()]


def _across(trials: pd.DataFrame, axes: Sequence[str]) -> str | None:
    """The axis that figures are drawn over: the images of a class (Fig. 4), else the first of few numbers."""
    numeric = [
        axis
        for axis in axes
        if pd.api.types.is_numeric_dtype(trials[axis].dtype) and 1 < trials[axis].nunique() <= _MAX_TICKS
    ]
    return next((axis for axis in (_REGIME, *numeric) if axis in numeric or (axis == _REGIME and axis in axes)), None)


def _images_per_class(trials: pd.DataFrame) -> float | None:
    """Of all images, from how many the smallest regime has: as many of each class."""
    limited = trials[trials[_REGIME].notna()].sort_values(_REGIME)
    everything = trials[trials[_REGIME].isna()]
    if limited.empty or everything.empty:
        return None
    classes = float(limited["num_images"].iloc[0]) / float(limited[_REGIME].iloc[0])
    return float(round(everything["num_images"].max() / classes))


def _history(runs: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Series]:
    """Each sign of collapse over epochs, the mean of the runs that have it there; empty where none was looked for."""
    values: dict[str, dict[float, list[float]]] = {}
    for line in (line for run in runs for line in run if "feature_std" in line):
        for sign, value in line.items():
            if value is not None:
                values.setdefault(sign, {}).setdefault(line["epoch"], []).append(value)
    return {sign: (sorted(at), [statistics.fmean(at[epoch]) for epoch in sorted(at)]) for sign, at in values.items()}
