"""The page of a sweep: the paper's tables and figures, made of its trials as a tidy table.

A sweep that is still running, or in which trials have failed, is reported as far as it is. The page names every trial,
and says why one has no result. Tables and figures are also written into the sweep's folder as files.
"""

import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from glsd.record import flatten
from glsd.reporting import tables
from glsd.reporting.figures.canvas import figure_bytes, inline_svg
from glsd.reporting.figures.regimes import axis_name
from glsd.reporting.numbers import number_text, share_text
from glsd.reporting.page import html
from glsd.reporting.page.html import Html
from glsd.reporting.pages.common import footer, unfinished_badge
from glsd.reporting.sweep_figures import COMPARED, SweepFigures
from glsd.reporting.sweep_table import sweep_axes, sweep_table, top1
from glsd.reporting.tables import SEED, SETTING
from glsd.runs.log import FIGURES
from glsd.runs.records import SWEEP, SweepFile, read_record
from glsd.runs.sweep import TRIALS, TrialState, trial_states
from glsd.storage.folder import Folder

_SIGNS = ("feature_std", "effective_rank", "k_star_entropy", "information_global", "information_dense")
_UNFINISHED = ("waiting", "started")


def sweep_page(out: str) -> str:
    """The page of a sweep; its tables and figures are written into the folder.

    Raises:
        ValueError: the folder is not a sweep, or holds no trial.
    """
    states, folder = trial_states(out), Folder(out)
    if not states:
        raise ValueError(f"{folder.uri(SWEEP)} names no trial, so there is nothing to report")
    sweep = read_record(folder, SweepFile)
    assert sweep is not None
    trials = sweep_table(states)
    axes = sweep_axes(trials, sweep.together)
    figures = SweepFigures(trials, axes, states, sweep.together)
    made = [figures.results(), figures.curves(), figures.collapse()]
    files = tables.table_files(trials, axes) | {
        f"{FIGURES}/{one.stem}.{kind}": figure_bytes(one.figure, kind)
        for section in made
        for one in section
        for kind in ("png", "svg")
    }
    for name, content in files.items():
        folder.write(name, content)
    results, curves, collapse = (
        [html.picture(inline_svg(one.figure, one.title), one.title, one.caption) for one in section] for section in made
    )
    num_ended = sum(state.status not in _UNFINISHED for state in states)
    lead = f"{sweep.grid}: {num_ended:,} of {len(states):,} trials have ended"
    lead += f"; they differ in {', '.join(axes)}." if axes else "."
    return html.page(
        html.Head("glsd · sweep", Path(folder.path).name, _badges(folder, states, num_ended), lead),
        {
            "Results": [*results, *_results(trials, axes)],
            "Not as planned": [_exceptions(states, trials)],
            "Curves": curves or [html.prose("No trial has been tested by k-NN yet.")],
            "Collapse": [*_collapse(states, trials, axes), *collapse],
            "Cost": _cost(trials, axes),
            "All trials": [_trials(trials)],
            "Use the results": _files(folder, files),
            "Settings": _settings(sweep, trials, axes),
        },
        footer(folder),
    )


def _badges(folder: Folder, states: Sequence[TrialState], num_ended: int) -> list[Html]:
    if num_ended < len(states):
        badges = [unfinished_badge(folder, f"{num_ended:,} of {len(states):,} trials")]
    else:
        badges = [html.badge("good", f"{len(states):,} trials ended")]
    found = {name: sum(state.status == name for state in states) for name in ("failed", "not finite")}
    found["collapsed"] = sum(state.verdict == "collapsed" for state in states)
    return badges + [html.badge("bad", f"{count} {name}") for name, count in found.items() if count]


def _results(trials: pd.DataFrame, axes: Sequence[str]) -> list[Html]:
    blocks: list[Html] = []
    notes: dict[str, None] = {}
    compared = tables.comparison(trials, axes)
    for measure in COMPARED:
        if compared.settings and trials[measure].notna().any():
            one = tables.comparison(trials, axes, [measure])
            rows = [[*key, *cells] for key, cells in one.rows]
            caption = f"{one.measures[0]}, with the difference to vanilla"
            blocks.append(html.table([*map(axis_name, one.axes), *one.settings], rows, caption))
            notes |= dict.fromkeys(one.notes)
    if blocks:
        listed = "; ".join(["± is one standard deviation over seeds", *notes, "NA: the loss was not finite"])
        blocks.append(html.prose(f"{listed}."))
    differences = tables.seed_differences(trials, axes)
    if len(differences):
        header, rows = tables.table_cells(differences, "+.1f", COMPARED)
        title = "Differences to vanilla with the same seed, mean ± standard deviation over seeds"
        table = html.table([*header[:-1], "pairs"], rows, title)
        blocks.append(html.details("Differences with their spread", [table]))
    everything = html.table(
        *tables.table_cells(tables.seed_summary(trials, axes)), "Means ± standard deviations over seeds"
    )
    blocks.append(html.details("All measures", [everything]) if blocks else everything)
    return [*blocks, html.details("The table in LaTeX", [html.code(tables.latex_table(compared))])]


def _exceptions(states: Sequence[TrialState], trials: pd.DataFrame) -> Html:
    """Every trial that did not end healthy at its last epoch, with what it said."""
    rows = []
    for state, steps in zip(states, trials["steps"].tolist(), strict=True):
        if state.status in ("finished", *_UNFINISHED) and state.verdict != "collapsed":
            continue
        collapse = None if state.evaluation is None else state.evaluation.collapse
        said = [state.message] * bool(state.message) + ([] if collapse is None else collapse.reasons)
        accuracy = top1(state.evaluation, "results", flatten(state.config or {}))
        if state.status == "not finite" and accuracy is not None:
            said.append(f"its last checkpoint has a k-NN accuracy of {share_text(accuracy)}")
        collapsed = state.verdict == "collapsed" and state.status != "collapsed"
        status = f"{state.status}, collapsed" if collapsed else state.status
        rows.append([state.name, status, f"{steps:,} of {state.steps:,}", "; ".join(said) or "–"])
    if not rows:
        return html.prose(
            "None: no trial that has ended failed, collapsed, was stopped or had a loss that is not finite."
        )
    return html.table(["trial", "status", "steps", "what it said"], rows)


def _collapse(states: Sequence[TrialState], trials: pd.DataFrame, axes: Sequence[str]) -> list[Html]:
    """How many trials have collapsed, by setting and all else that varies, and the last readings of each."""
    judged = trials[trials["verdict"].notna()]
    if judged.empty:
        return [html.prose("No trial has a verdict yet.")]
    others = [axis for axis in axes if axis not in (SETTING, SEED)]
    found = tables.by_axes(tables.seed_summary(judged, axes), others)
    settings = list(dict.fromkeys(setting for by_setting in found.values() for setting in by_setting))
    rows = [
        [*key, *(f"{row['collapsed']} of {row['trials']}" if (row := by_setting.get(one)) else "–" for one in settings)]
        for key, by_setting in found.items()
    ]
    readings = [
        [state.name, state.verdict, *(_shown(state.last(sign)) for sign in _SIGNS)] for state in states if state.verdict
    ]
    header = ["trial", "verdict", *(sign.replace("_", " ") for sign in _SIGNS)]
    title = "Collapsed trials (Sec. 4.6), of those that have a verdict"
    return [
        html.table([*map(axis_name, others), *(setting or "trials" for setting in settings)], rows, title),
        html.details("Verdicts and last readings", [html.table(header, readings)]),
    ]


def _cost(trials: pd.DataFrame, axes: Sequence[str]) -> list[Html]:
    by = [axis for axis in axes if axis != SEED]
    hours = {
        "GPU hours of training": float(trials["gpu_hours"].sum()),
        "hours of training on CPUs": float(trials.loc[~(trials["gpu_hours"] > 0), "train_hours"].sum()),
    }
    tiles = [(number_text(value), name) for name, value in hours.items() if value]
    tiles.append((f"{int(trials['images_seen'].sum()):,}", "images seen"))
    grouped: Iterable[Any] = trials.groupby(by, dropna=False, sort=False) if by else [((), trials)]
    rows = [
        [
            *(tables.axis_text(axis, value) for axis, value in zip(by, key, strict=True)),
            str(len(group)),
            f"{int(group['images_seen'].sum()):,}",
            _shown(group["images_per_s"].mean()),
            number_text(group["train_hours"].sum()),
            number_text(group["gpu_hours"].sum()),
        ]
        for key, group in grouped
    ]
    header = [*map(axis_name, by), "trials", "images seen", "images/s", "hours of training", "GPU hours"]
    note = "Time within training steps; starting workers, checkpoints, k-NN and evaluation come on top."
    return [html.tiles(tiles), html.table(header, rows), html.prose(note)]


def _trials(trials: pd.DataFrame) -> Html:
    rows = [
        [
            row["trial"],
            row["status"],
            _shown(row["verdict"], str),
            f"{row['steps']:,} of {row['total_steps']:,}",
            _shown(row["loss"], "{:.3f}".format),
            *(_shown(row[name], share_text) for name in ("knn_online", "knn")),
        ]
        for row in trials.to_dict("records")
    ]
    return html.table(["trial", "status", "verdict", "steps", "loss", "k-NN while training", "k-NN"], rows)


def _shown(value: Any, text: Callable[[Any], str] = number_text) -> str:
    return "–" if pd.isna(value) else text(value)


def _files(folder: Folder, files: Iterable[str]) -> list[Html]:
    read = f"import pandas\ntrials = pandas.read_parquet({folder.uri('results.parquet')!r})"
    return [
        html.prose("One row per trial; settings are columns by their dotted keys, accuracies are shares:"),
        html.code(read),
        html.prose(f"Beside it: {', '.join(sorted(set(files) - {'results.parquet'}))}."),
        html.prose("A page of each trial, from its own folder:"),
        html.code(shlex.join(["glsd", "report", folder.uri(f"{TRIALS}/NAME")])),
    ]


def _settings(sweep: SweepFile, trials: pd.DataFrame, axes: Sequence[str]) -> list[Html]:
    values = [
        (axis, ", ".join(dict.fromkeys(tables.axis_text(axis, value) for value in trials[axis].tolist())))
        for axis in axes
    ]
    facts = html.facts([("grid", sweep.grid), *values])
    if sweep.command:
        said = html.prose("The same command resumes what is not finished:")
        return [facts, said, html.code(shlex.join(sweep.command))]
    return [facts, html.prose("The call that made it resumes what is not finished.")]
