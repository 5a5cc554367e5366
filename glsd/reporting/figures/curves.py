"""Curves over training: all that a run has logged, and whether runs collapse (Sec. 4.6; Fig. 7)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from glsd.evaluation.verdict import standard_error
from glsd.reporting.figures.charts import Chart, Level, Line, draw_charts

Series = tuple[Sequence[float | int], Sequence[float | int | None]]
"""Steps or epochs, and the values there; None and NaN are gaps."""

_TRAINING = {
    "Loss": {"loss": "total", "loss_global": "global", "loss_local": "local"},
    "k-NN accuracy, %": {"knn": "teacher"},
    "Locations with a match, %": {"matched": ""},
}
"""Charts of a run: the names of their metrics' lines."""
_COLLAPSE = {
    "Collapse: features": {"feature_std": "deviation", "effective_rank": "rank"},
    "Collapse: matched locations": {"k_star_entropy": "entropy", "k_star_distinct": "distinct"},
    "Collapse: entropy of the heads": {"entropy_global": "global", "entropy_dense": "dense"},
    "Collapse: information of the heads": {"information_global": "global", "information_dense": "dense"},
}
_COLLAPSE_LEVELS: dict[str, Sequence[Level]] = {
    "Collapse: features": [("all alike", 0.0)],
    "Collapse: matched locations": [("one location", 0.0)],
    "Collapse: entropy of the heads": [("one prototype", 0.0), ("uniform", 1.0)],
    "Collapse: information of the heads": [("all alike", 0.0)],
}
"""Where a collapse ends."""
_TITLES = {
    "cache_hit_rate": "Images from the node's cache, %",
    "coordinator_bytes": "Memory of the coordinator, MiB",
    "data_wait": "Share of time spent waiting for data",
    "gpu_bytes": "Most memory on a GPU, GiB",
    "images_per_s": "Images per second",
    "lr": "Learning rate",
    "object_store": "Object store in use, %",
    "requests": "Requests to object stores",
    "skipped": "Images that could not be decoded",
    "teacher_momentum": "Momentum of the teacher",
    "teacher_temperature": "Temperature of the teacher",
    "units_ahead": "Units begun ahead of the training",
    "units_per_s": "Units per second",
    "units_waiting": "Units made ahead of the training",
    "weight_decay": "Weight decay",
    "workers": "Training workers",
}
_SCALES = {
    "cache_hit_rate": 100, "coordinator_bytes": 2**-20, "gpu_bytes": 2**-30, "knn": 100, "matched": 100,
    "object_store": 100,
}  # fmt: skip
"""What metrics are multiplied by, for the unit in the title."""
_NO_CURVES = {"step", "epoch", "seconds_left", "knn_anchors", "knn_queries", "knn_majority", "loss_share", "collapsed"}

_SHARE: list[Level] = [("", 0.0), ("", 1.0)]
_SIGNS: dict[str, tuple[str, Sequence[Level]]] = {
    "k_star_entropy": ("entropy of matched k* / ln K", _SHARE),
    "k_star_distinct": ("distinct k* / K", _SHARE),
    "feature_std": ("feature standard deviation", [("", 0.0), ("isotropic", 1.0)]),
    "effective_rank": ("effective rank / largest possible", _SHARE),
    "entropy_global": ("output entropy / ln I, head h̄", [("", 0.0), ("uniform", 1.0)]),
    "entropy_dense": ("output entropy / ln I, head h", [("", 0.0), ("uniform", 1.0)]),
    "information_global": ("output information, head h̄", _SHARE),
    "information_dense": ("output information, head h", _SHARE),
    "loss": ("loss", ()),
}
"""Signs of collapse with their titles and levels."""


class RunCharts(NamedTuple):
    """The charts of a run."""

    training: list[Chart]
    """Losses, accuracy and matches."""
    collapse: list[Chart]
    """The signs of collapse (Sec. 4.6)."""
    others: list[Chart]
    """Schedules, throughput and all other metrics."""


def steps_per_epoch(metrics: Sequence[Mapping[str, Any]]) -> int | None:
    """Steps of an epoch, by the last line that names one."""
    return next((round(line["step"] / line["epoch"]) for line in reversed(metrics) if line.get("epoch")), None)


def run_charts(
    metrics: Sequence[Mapping[str, Any]],
    levels: Mapping[str, Sequence[Level]] | None = None,
    hidden: Sequence[str] = (),
) -> RunCharts:
    """Charts of all that a run has logged but `hidden` metrics, over its epochs where these are known, else its steps.

    `levels` are further ones by the title of their chart.
    """
    levels = _COLLAPSE_LEVELS | dict(levels or {})
    per_epoch = steps_per_epoch(metrics)
    measured = {key for line in metrics for key, value in line.items() if value is not None} - {*_NO_CURVES, *hidden}

    def line_of(key: str, name: str) -> Line:
        rows, scale = [row for row in metrics if key in row], _SCALES.get(key, 1)
        x = [row["step"] / (per_epoch or 1) for row in rows]
        y = [None if row[key] is None else scale * row[key] for row in rows]
        if key == "knn" and all("knn_queries" in row for row in rows):
            return Line(name, x, y, [scale * standard_error(row["knn"], row["knn_queries"]) for row in rows])
        return Line(name, x, y)

    def charts(titled: Mapping[str, Mapping[str, str]]) -> list[Chart]:
        return [
            Chart(
                title,
                [line_of(key, name) for key, name in names.items() if key in measured],
                levels.get(title, ()),
                "epoch" if per_epoch else "step",
            )
            for title, names in titled.items()
            if measured & names.keys()
        ]

    charted = {key for titled in (_TRAINING, _COLLAPSE) for names in titled.values() for key in names}
    others = {_TITLES.get(key, key.replace("_", " ")): {key: ""} for key in sorted(measured - charted)}
    return RunCharts(charts(_TRAINING), charts(_COLLAPSE), charts(others))


def draw_collapse(histories: Mapping[str, Mapping[str, Series]], x_name: str = "step") -> Figure:
    """Signs of collapse over training, a panel for each that a run has and a line for each run (Sec. 4.6).

    `histories` holds for each run, by its name, the series by their names in `collapse_metrics`, and `loss`; `x_name`
    is what the first numbers of the series count.

    Raises:
        ValueError: no run has any of the series, or there are more runs than lines that can be told apart.
    """
    charts = [
        Chart(title, [Line(name, *series[key]) for name, series in histories.items() if key in series], levels, x_name)
        for key, (title, levels) in _SIGNS.items()
        if any(key in series for series in histories.values())
    ]
    return draw_charts(charts, list(histories))
