"""The report of a sweep: its trials as a tidy table, the paper's tables and figures made of it, and a page of all that.

A sweep that is still running, or in which trials have failed, is reported as far as it is: no trial is left out of the
page, and what has no result says why. Tables and figures are also written into the sweep's folder as files.
"""

import json
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from glsd.config import flatten
from glsd.reporting.figures.canvas import save_png_and_svg
from glsd.reporting.figures.regimes import axis_name
from glsd.reporting.page.charts import number_text
from glsd.reporting.page.html import (
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
from glsd.reporting.sweep_figures import COMPARED, SweepFigures, Together
from glsd.reporting.sweep_table import sweep_axes, sweep_table, top1, trial_row
from glsd.reporting.tables import (
    SEED,
    SETTING,
    axis_text,
    comparison,
    latex_table,
    seed_differences,
    seed_summary,
    table_cells,
    write_tables,
)
from glsd.runs.lease import TIMES, read_holder
from glsd.runs.log import FIGURES
from glsd.runs.sweep import SWEEP, TRIALS, TrialState, trial_states
from glsd.storage.folder import Folder

_SIGNS = ("feature_std", "effective_rank", "k_star_entropy", "information_global", "information_dense")
_UNFINISHED = ("waiting", "started")


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
        shown = SweepFigures(trials, axes, states, together)
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
        for measure in COMPARED:
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
        header, rows = table_cells(differences, "+.1f", COMPARED)
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
                accuracy = top1(state.evaluation, "results", flatten(state.config or {}))
                said += (
                    [] if accuracy is None else [f"its last checkpoint has a k-NN accuracy of {share_text(accuracy)}"]
                )
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
        row = trial_row(state, ())
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
