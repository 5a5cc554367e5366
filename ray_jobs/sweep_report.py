"""The report of a sweep: its trials as a tidy table, the paper's tables and figures made of it, and a page of all that.

A sweep that is still running, or in which trials have failed, is reported as far as it is: no trial is left out of the
page, and what has no result says why. Tables and figures are also written into the sweep's folder as files.
"""

import json
import shlex
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from glsd.config import flatten
from glsd.reporting.canvas import save_png_and_svg
from glsd.reporting.charts import number_text
from glsd.reporting.curves import LOOKS, Series, draw_collapse
from glsd.reporting.html import (
    Badge,
    Block,
    Code,
    Details,
    Facts,
    FigureBlock,
    Page,
    Prose,
    Section,
    Table,
    Tiles,
    share_text,
)
from glsd.reporting.regimes import axis_name, draw_comparison, draw_regimes, draw_trial_curves
from glsd.reporting.tables import (
    SEED,
    SETTING,
    axis_text,
    comparison,
    latex_table,
    seed_differences,
    seed_summary,
    table_cells,
    tidy_table,
    varied,
    write_tables,
)
from glsd.runs.lease import TIMES, read_holder
from glsd.runs.log import FIGURES
from glsd.runs.sweep import SWEEP, TRIALS, TrialState, trial_states
from glsd.storage.folder import Folder

_REGIME = "data.images_per_class"
_MAX_PANELS, _MAX_TICKS, _MAX_FIGURES = 12, 12, 6
_COMPARED = ("knn", "accuracy", "error_px")
_SIGNS = ("feature_std", "effective_rank", "k_star_entropy", "information_global", "information_dense")
_UNFINISHED = ("waiting", "started")
_ALL = "all trials"


Together = Sequence[Sequence[str]]
"""Settings that the grid sets together, list by list, as `sweep.json` has them."""


def sweep_table(states: Sequence[TrialState]) -> pd.DataFrame:
    """One row a trial, as `results.csv` has it.

    Settings that differ between trials are columns by their dotted keys. `steps` and `images_seen` are those that were
    done, of `total_steps`; `knn` is that of the evaluation with the configuration's k, `knn_online` the last during
    training; accuracies are shares. A trial whose loss was not finite has no results of an evaluation (the paper's
    NA), though its last checkpoint was evaluated.
    """
    keys = list(dict.fromkeys(key for state in states for key in state.overrides))
    return tidy_table([_row(state, keys) for state in states])


def sweep_axes(trials: pd.DataFrame, together: Together = ()) -> list[str]:
    """The columns that make a trial: data set, settings and seed, those of them that vary.

    A number that always goes with a name, such as a drop path with a backbone, is no axis of its own, and nor is what
    the grid sets together with `objective.setting`, whose values are compared.
    """
    axes = varied(trials, ["data", *(str(name) for name in trials if "." in str(name) or name == SEED)])
    names = [axis for axis in axes if pd.api.types.is_string_dtype(trials[axis].dtype)]
    return [
        axis
        for axis in axes
        if axis in (SETTING, SEED)
        or axis.startswith("data.")
        or not any(
            _goes_with(trials, axis, name)
            for name in names
            if axis not in names or (name == SETTING and any(axis in keys and SETTING in keys for keys in together))
        )
    ]


def _goes_with(trials: pd.DataFrame, axis: str, other: str) -> bool:
    """Whether the other's value tells that of the axis."""
    return bool(trials.groupby(other, dropna=False)[axis].nunique(dropna=False).max() <= 1)


def _companions(trials: pd.DataFrame, axes: Sequence[str], together: Together) -> dict[str, list[str]]:
    """Of axes that the grid sets together one, with the others, which figures need not tell apart."""
    found: dict[str, list[str]] = {}
    for keys in together:
        members = [axis for axis in axes if axis in keys]
        for first in sorted(members, key=lambda axis: (axis not in (SETTING, _REGIME), -trials[axis].nunique()))[:1]:
            found[first] = [axis for axis in members if axis != first and _goes_with(trials, axis, first)]
    return found


def sweep_page(out: str) -> Page:
    """The page of a sweep; its tables and figures are written into the folder.

    Raises:
        ValueError: the folder is no sweep, or holds no trial.
    """
    states, folder = trial_states(out), Folder(out)
    if not states:
        raise ValueError(f"{folder.uri(SWEEP)} names no trial, so there is nothing to report")
    sweep = json.loads(folder.read(SWEEP) or b"{}")
    together: Together = sweep.get("together", [])
    trials = sweep_table(states)
    axes = sweep_axes(trials, together)
    with tempfile.TemporaryDirectory(prefix="glsd-") as drawn:
        write_tables(trials, axes, Path(drawn))
        shown = _Shown(trials, axes, states, together)
        figures = {
            name: [
                _drawn(figure, title, caption, Path(drawn) / FIGURES / stem) for stem, figure, title, caption in made
            ]
            for name, made in {
                "results": shown.results(),
                "curves": shown.curves(),
                "collapse": shown.collapse(),
            }.items()
        }
        files = {path.relative_to(drawn).as_posix(): path for path in sorted(Path(drawn).rglob("*")) if path.is_file()}
        for name, path in files.items():
            folder.write(name, path.read_bytes())
    num_ended = sum(state.status not in _UNFINISHED for state in states)
    return Page(
        kind="glsd · sweep",
        title=Path(folder.path).name,
        badges=_badges(folder, states),
        lead=f"{sweep['grid']}: {num_ended:,} of {len(states):,} trials have ended"
        + (f"; they differ in {', '.join(axes)}." if axes else "."),
        sections=[
            Section("Results", [*figures["results"], *_results(trials, axes)]),
            Section("Not as planned", _exceptions(states, trials)),
            Section("Curves", figures["curves"] or [Prose("No trial has been tested by k-NN yet.")]),
            Section("Collapse", [*_collapse(states, trials, axes), *figures["collapse"]]),
            Section("Cost", _cost(trials, axes)),
            Section("All trials", [_trials(states)]),
            Section("Use the results", _files(folder, files)),
            Section("Settings", _settings(sweep, states, axes)),
        ],
        footer=f"Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC from {folder.out}.",
    )


def _row(state: TrialState, keys: Sequence[str]) -> dict[str, Any]:
    config = flatten(state.config or {})
    found = state.evaluation or {}
    tested = [line["knn"] for line in state.metrics if line.get("knn") is not None and line["step"]]
    measured = {} if state.status == "not finite" else found
    correspondence = measured.get("correspondence", {})
    steps, seconds = int(state.last("step") or 0), state.train_seconds
    images_seen = steps * config.get("optim.batch_size", 0)
    return {
        "trial": state.name,
        "data": state.data,
        **{key: state.overrides.get(key, config.get(key)) for key in keys},
        "num_images": state.num_images,
        "batch_size": config.get("optim.batch_size"),
        "epochs": config.get("optim.epochs"),
        "total_steps": state.steps,
        "steps": steps,
        "images_seen": images_seen,
        "status": state.status,
        "verdict": state.verdict or None,
        "message": state.message or None,
        "loss": state.last("loss"),
        "knn": _top1(measured, "results", config),
        "knn_online": tested[-1] if tested else None,
        "knn_untrained": _top1(found, "untrained", config),
        "majority": found["knn"]["majority"] if "knn" in found else None,
        **{name: correspondence.get(name) for name in ("accuracy", "accuracy_top", "error_px", "error_top_px")},
        "images_per_s": images_seen / seconds if seconds else None,
        "train_hours": seconds / 3600,
        "gpu_hours": seconds * state.gpus / 3600,
    }


def _top1(evaluation: Mapping[str, Any], side: str, config: Mapping[str, Any]) -> float | None:
    results = evaluation["knn"][side] if "knn" in evaluation else []
    return next((result["top1"] for result in results if result["k"] == config["evaluation.k"]), None)


def _badges(folder: Folder, states: Sequence[TrialState]) -> list[Badge]:
    counts = {status: sum(state.status == status for state in states) for status in ("failed", "not finite")}
    collapsed = sum(state.verdict == "collapsed" for state in states)
    num_ended = sum(state.status not in _UNFINISHED for state in states)
    holder = read_holder(folder)
    at_work = holder is not None and holder.silent_s < TIMES.lapse_s
    if num_ended < len(states):
        so_far = f"{num_ended:,} of {len(states):,} trials"
        badges = [Badge("open", f"running, {so_far}") if at_work else Badge("bad", f"interrupted, {so_far}")]
    else:
        badges = [Badge("good", f"{len(states):,} trials ended")]
    found = {"failed": counts["failed"], "not finite": counts["not finite"], "collapsed": collapsed}
    return badges + [Badge("bad", f"{count} {name}") for name, count in found.items() if count]


def _results(trials: pd.DataFrame, axes: Sequence[str]) -> list[Block]:
    summary, differences = seed_summary(trials, axes), seed_differences(trials, axes)
    compared = comparison(trials, axes)
    blocks: list[Block] = []
    notes: dict[str, None] = {}
    if compared.settings:
        for measure in _COMPARED:
            if trials[measure].notna().any():
                one = comparison(trials, axes, [measure])
                header = [*map(axis_name, one.axes), *one.settings]
                rows = [[*key, *cells] for key, cells in one.rows]
                blocks.append(Table(header, rows, f"{one.measures[0]}, with the difference to vanilla"))
                notes |= dict.fromkeys(one.notes)
    if blocks:
        listed = "; ".join(["± is one standard deviation over seeds", *notes, "NA: the loss was not finite"])
        blocks.append(Prose(f"{listed}."))
    if len(differences):
        header, rows = table_cells(differences, "+.1f", _COMPARED)
        title = "Differences to vanilla with the same seed, mean ± standard deviation over seeds"
        blocks.append(Details("Differences with their spread", [Table([*header[:-1], "pairs"], rows, title)]))
    header, rows = table_cells(summary)
    everything = Table(header, rows, "Means ± standard deviations over seeds")
    blocks += [Details("All measures", [everything])] if blocks else [everything]
    return [*blocks, Details("The table in LaTeX", [Code(latex_table(compared))])]


def _exceptions(states: Sequence[TrialState], trials: pd.DataFrame) -> list[Block]:
    """Every trial that did not end healthy at its last epoch, with what it said."""
    rows = []
    for state, steps in zip(states, trials["steps"].tolist(), strict=True):
        if state.status in ("finished", *_UNFINISHED) and state.verdict != "collapsed":
            continue
        said = [state.message] if state.message else []
        if state.evaluation is not None:
            said += state.evaluation.get("collapse", {}).get("reasons", [])
            if state.status == "not finite" and "knn" in state.evaluation:
                top1 = _top1(state.evaluation, "results", flatten(state.config or {}))
                said += [] if top1 is None else [f"its last checkpoint has a k-NN accuracy of {share_text(top1)}"]
        status = (
            state.status
            if state.verdict != "collapsed" or state.status == "collapsed"
            else (f"{state.status}, collapsed")
        )
        rows.append([state.name, status, f"{steps:,} of {state.steps:,}", "; ".join(said) or "–"])
    if not rows:
        return [Prose("None: no trial that has ended failed, collapsed, was stopped or had a loss that is not finite.")]
    return [Table(["trial", "status", "steps", "what it said"], rows)]


def _collapse(states: Sequence[TrialState], trials: pd.DataFrame, axes: Sequence[str]) -> list[Block]:
    """How many trials have collapsed, by setting and all else that varies, and what each was judged by."""
    judged = trials[trials["verdict"].notna()]
    if judged.empty:
        return [Prose("No trial has a verdict yet.")]
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    others = [axis for axis in axes if axis not in (SETTING, SEED)]
    for row in seed_summary(judged, axes).to_dict("records"):
        key = tuple(axis_text(axis, row[axis]) for axis in others)
        cells.setdefault(key, {})[str(row.get(SETTING, "trials"))] = f"{row['collapsed']} of {row['trials']}"
    columns = list(dict.fromkeys(name for by_setting in cells.values() for name in by_setting))
    rows = [[*key, *(by_setting.get(name, "–") for name in columns)] for key, by_setting in cells.items()]
    readings = [
        [
            state.name,
            state.verdict,
            *("–" if (value := state.last(sign)) is None else number_text(value) for sign in _SIGNS),
        ]
        for state in states
        if state.verdict
    ]
    names = [sign.replace("_", " ") for sign in _SIGNS]
    return [
        Table([*map(axis_name, others), *columns], rows, "Collapsed trials (Sec. 4.6), of those that have a verdict"),
        Details("Verdicts and last readings", [Table(["trial", "verdict", *names], readings)]),
    ]


def _cost(trials: pd.DataFrame, axes: Sequence[str]) -> list[Block]:
    by = [axis for axis in axes if axis != SEED]
    on_gpus = trials["gpu_hours"] > 0
    hours = {
        "GPU hours of training": float(trials["gpu_hours"].sum()),
        "hours of training on CPUs": float(trials.loc[~on_gpus, "train_hours"].sum()),
    }
    tiles = [(number_text(value), name) for name, value in hours.items() if value]
    tiles.append((f"{int(trials['images_seen'].sum()):,}", "images seen"))
    rows = []
    grouped = trials.groupby(by, dropna=False, sort=False) if by else [((), trials)]
    for key, group in grouped:
        rows.append(
            [
                *(axis_text(axis, value) for axis, value in zip(by, key, strict=True)),
                str(len(group)),
                f"{int(group['images_seen'].sum()):,}",
                number_text(group["images_per_s"].mean()) if group["images_per_s"].notna().any() else "–",
                number_text(group["train_hours"].sum()),
                number_text(group["gpu_hours"].sum()),
            ]
        )
    header = [*map(axis_name, by), "trials", "images seen", "images/s", "hours of training", "GPU hours"]
    note = "Time within training steps; starting workers, checkpoints, k-NN and evaluation come on top."
    return [Tiles(tiles), Table(header, rows), Prose(note)]


def _trials(states: Sequence[TrialState]) -> Block:
    rows = []
    for state in states:
        row = _row(state, ())
        rows.append(
            [
                state.name,
                state.status,
                state.verdict or "–",
                f"{row['steps']:,} of {state.steps:,}",
                "–" if row["loss"] is None else f"{row['loss']:.3f}",
                "–" if row["knn_online"] is None else share_text(row["knn_online"]),
                "–" if row["knn"] is None else share_text(row["knn"]),
            ]
        )
    return Table(["trial", "status", "verdict", "steps", "loss", "k-NN while training", "k-NN"], rows)


def _files(folder: Folder, files: Mapping[str, Path]) -> list[Block]:
    read = f"import pandas\ntrials = pandas.read_parquet({folder.uri('results.parquet')!r})"
    return [
        Prose("One row a trial; settings are columns by their dotted keys, accuracies are shares:"),
        Code(read),
        Prose("Beside it: " + ", ".join(name for name in files if name != "results.parquet") + "."),
        Prose("A page of each trial, from its own folder:"),
        Code(shlex.join(["glsd", "report", folder.uri(f"{TRIALS}/NAME")])),
    ]


def _settings(sweep: Mapping[str, Any], states: Sequence[TrialState], axes: Sequence[str]) -> list[Block]:
    trials = sweep_table(states)
    values = [
        (axis, ", ".join(dict.fromkeys(axis_text(axis, value) for value in trials[axis].tolist()))) for axis in axes
    ]
    blocks: list[Block] = [Facts([("grid", sweep["grid"]), *values])]
    if sweep.get("command"):
        return [
            *blocks,
            Prose("The same command goes on with what is not finished:"),
            Code(shlex.join(sweep["command"])),
        ]
    return [*blocks, Prose("The call that made it goes on with what is not finished.")]


def _drawn(figure: Figure, title: str, caption: str, stem: Path) -> FigureBlock:
    png, _ = save_png_and_svg(figure, stem)
    return FigureBlock(png.read_bytes(), title, caption)


_Made = list[tuple[str, Figure, str, str]]
"""Figures with the stems of their files, titles and captions."""


class _Shown:
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

    def _name(self, axis: str) -> str:
        """The axis and what goes together with it."""
        return " with ".join(map(axis_name, [axis, *self._companions.get(axis, [])]))

    def results(self) -> _Made:
        """Fig. 4 where an axis is numeric, for each combination of the remaining axes; else every trial as a dot."""
        made: _Made = []
        for label, part in _parts(self._trials, self._others):
            if self._x is None or not part[[*_COMPARED]].notna().any(axis=None):
                continue
            figure = draw_regimes(part, self._x, self._group, _images_per_class(part) if self._x == _REGIME else None)
            stem = f"regimes_{len(made) + 1}" if self._others else "regimes"
            title = f"Over {self._name(self._x)}" + (f", {label}" if label else "")
            made.append((stem, figure, title, _REGIMES_CAPTION))
        if 0 < len(made) <= _MAX_FIGURES or not self._trials["knn"].notna().any():
            return made
        figure = draw_comparison(self._trials, self._axes, group=self._group)
        return [("comparison", figure, "k-NN of all trials", _DOTS_CAPTION)]

    def curves(self) -> _Made:
        """k-NN over the epochs of every trial."""
        parts = _parts(self._trials, self._panels)
        if len(parts) > _MAX_PANELS:
            parts = [("", self._trials)]
        curves: dict[str, list[tuple[str, Series]]] = {}
        for label, part in parts:
            for trial, name in zip(part["trial"], _texts(part, self._lines), strict=True):
                tested = [line for line in self._metrics[trial] if line.get("knn") is not None]
                if len(tested) > 1:
                    series = ([line.get("epoch", 0) for line in tested], [100 * line["knn"] for line in tested])
                    curves.setdefault(label or _ALL, []).append((name, series))
        if not curves:
            return []
        caption = f"A line for every trial, by {self._name(self._lines)}."
        return [("curves", draw_trial_curves(curves, "k-NN (%)"), "k-NN while training", caption)]

    def collapse(self) -> _Made:
        """The signs of collapse: a figure for each setting, a line for each combination of the other axes."""
        lines = self._panels or [self._lines]
        caption = f"Means over seeds of what the teacher still tells apart, by {' and '.join(map(self._name, lines))}."
        made: _Made = []
        for label, part in _parts(self._trials, [self._lines] if self._panels else []):
            histories = {
                _values(rows, lines): _history([self._metrics[trial] for trial in rows["trial"]])
                for _, rows in _parts(part, lines)
            }
            histories = {line: history for line, history in histories.items() if history}
            if 0 < len(histories) <= len(LOOKS):
                title = "Signs of collapse" + (f", {label}" if label else "")
                made.append((f"collapse_{len(made) + 1}", draw_collapse(histories, axis="epoch"), title, caption))
        return made


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


_REGIMES_CAPTION = (
    "Means over seeds with one standard deviation, faint dots are the trials. Open marks have collapsed; a cross is a "
    "trial whose loss was not finite; the dotted line is the backbone before training."
)
_DOTS_CAPTION = "Large marks are means over seeds with one standard deviation, faint dots the trials."
