"""Tables of a sweep: one row per trial, its summary over seeds, and Table 3's layout with differences to vanilla.

A trial is a mapping from column names to values. The columns of what was varied are settings by their dotted keys, as
everywhere; `MEASURES` are the columns of what was measured. A trial whose `status` is "not finite" is the paper's NA,
one without measures for another reason a dash; one whose `verdict` is "collapsed" counts and is marked.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

MEASURES = {
    "knn": "k-NN",
    "accuracy": "correspondence",
    "accuracy_top": "correspondence, top 10",
    "error_px": "error [px]",
    "error_top_px": "error, top 10 [px]",
}
"""What is measured of a trial, and what it is called."""

SETTING, SEED, VANILLA = "objective.setting", "seed", "vanilla"
COLLAPSED_MARK, INCOMPLETE_MARK = "†", "*"
Row = Mapping[Any, Any]
_SHARES = ("knn", "accuracy", "accuracy_top")
_REGIMES = ("data.images_per_class", "data.fraction")
_NOTES = {COLLAPSED_MARK: "collapsed, or some of its seeds (Sec. 4.6)", INCOMPLETE_MARK: "not all seeds have a result"}


def tidy_table(trials: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per trial, in the order given; whole numbers stay whole beside None, and a list becomes its JSON."""
    names = dict.fromkeys(name for trial in trials for name in trial)
    return pd.DataFrame({name: _typed([trial.get(name) for trial in trials]) for name in names})


def varied(trials: pd.DataFrame, axes: Sequence[str]) -> list[str]:
    """Those of the axes that have more than one value, none being a value too."""
    return [axis for axis in axes if trials[axis].nunique(dropna=False) > 1]


def seed_summary(trials: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """Mean, standard deviation and number of each measure over the seeds of every combination of the axes.

    Columns are the axes without the seed, `knn_mean`, `knn_std`, `knn_count`, ... of the measures that any trial has,
    and how many `trials` there are, how many of them `not_finite` and `collapsed`. One seed has no deviation (n - 1 is
    0). Rows keep the order of the trials.
    """
    by = [axis for axis in axes if axis != SEED]
    measures = [name for name in MEASURES if name in trials and trials[name].notna().any()]
    counted = trials.assign(
        trials=1, not_finite=holds(trials, "status", "not finite"), collapsed=holds(trials, "verdict", "collapsed")
    )
    grouped = counted.groupby(by or (lambda _: 0), dropna=False, sort=False)
    summary = pd.concat(
        [
            *(grouped[name].agg(["mean", "std", "count"]).add_prefix(f"{name}_") for name in measures),
            grouped[["trials", "not_finite", "collapsed"]].sum(),
        ],
        axis="columns",
    )
    return summary.reset_index(drop=not by)


def seed_differences(trials: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """The summary of each setting's differences to vanilla, pairs of trials that share all else, the seed too.

    Seeds move all settings together (they have the same images and initial weights), so that the spread of the
    differences is what a difference stands against. Without two settings, or without vanilla, it has no rows.
    """
    others = [axis for axis in axes if axis != SETTING] + [SEED] * (SEED in trials and SEED not in axes)
    measures = [name for name in MEASURES if name in trials]
    if SETTING not in axes:
        return seed_summary(trials.iloc[:0], axes)
    is_vanilla = trials[SETTING] == VANILLA
    vanilla = trials.loc[is_vanilla, [*others, *measures]].assign(pair=1)
    pairs = trials.loc[~is_vanilla, [*others, SETTING, *measures]].assign(pair=1)
    pairs = pairs.merge(vanilla, on=[*others, "pair"], suffixes=("", " of vanilla"))
    for name in measures:
        pairs[name] -= pairs[f"{name} of vanilla"]
    return seed_summary(pairs, axes)


def table_cells(
    summary: pd.DataFrame, form: str = ".1f", shown: Sequence[str] = tuple(MEASURES)
) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of a `seed_summary` or `seed_differences` as texts: `72.3 ± 0.4` over seeds, shares in per cent.

    `form` is that of a mean, such as `+.1f` for a difference. Measures that are `shown` have a column if they have a
    value.
    """
    axes, measures = _columns(summary)
    measures = [measure for measure in measures if measure in shown]
    header = [*axes, *(_title(measure) for measure in measures), "trials"]
    rows = [
        [*(axis_text(axis, row[axis]) for axis in axes), *(_cell(row, name, form) for name in measures), _counts(row)]
        for row in summary.to_dict("records")
    ]
    return header, rows


def markdown_table(summary: pd.DataFrame, form: str = ".1f") -> str:
    """The summary in Markdown.

    >>> print(markdown_table(seed_summary(tidy_table([
    ...     {"objective.setting": "vanilla", "seed": 0, "knn": 0.50},
    ...     {"objective.setting": "vanilla", "seed": 1, "knn": 0.52},
    ... ]), ["objective.setting", "seed"])))
    | objective.setting | k-NN [%] | trials |
    |---|---|---|
    | vanilla | 51.0 ± 1.4 | 2 |
    """
    header, rows = table_cells(summary, form)
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


@dataclass(frozen=True)
class Comparison:
    """Table 3's layout: a row for each combination of the other axes, columns for each setting and measure."""

    axes: list[str]
    settings: list[str]
    """Empty where nothing but the rows is compared."""
    measures: list[str]
    """Titles."""
    rows: list[tuple[list[str], list[str]]]
    """(values of the axes, cells): a cell is `73.8 ± 0.4 (+2.9)`, the difference to vanilla in brackets; NA where no
    loss stayed finite, a dash where nothing was measured for another reason."""

    @property
    def notes(self) -> list[str]:
        """What the marks in the cells mean."""
        cells = "".join(cell for _, cells in self.rows for cell in cells)
        return [f"{mark} {meaning}" for mark, meaning in _NOTES.items() if mark in cells]


def comparison(trials: pd.DataFrame, axes: Sequence[str], measures: Sequence[str] = ("knn", "accuracy")) -> Comparison:
    """The settings beside each other, in those of the measures that any trial has, or in the first one where none has.

    Differences are `seed_differences`': of the seeds that both have, and so those of the means where none is missing.
    """
    summary = seed_summary(trials, axes)
    by, present = _columns(summary)
    shown = [measure for measure in measures if measure in present] or list(measures[:1])
    settings = list(dict.fromkeys(summary[SETTING])) if SETTING in by else []
    others = [axis for axis in by if axis != SETTING]
    means, differences = by_axes(summary, others), by_axes(seed_differences(trials, axes), others)
    rows = [
        (
            list(key),
            [
                _compared(by_setting.get(setting), differences.get(key, {}).get(setting), measure)
                for setting in settings or [None]
                for measure in shown
            ],
        )
        for key, by_setting in means.items()
    ]
    return Comparison(others, settings, [_title(measure) for measure in shown], rows)


def latex_table(compared: Comparison) -> str:
    """A comparison in LaTeX, for the package booktabs."""
    num_groups, num_measures = max(1, len(compared.settings)), len(compared.measures)
    lines = [
        r"\begin{tabular}{" + "l" * len(compared.axes) + "r" * num_groups * num_measures + "}",
        r"\toprule",
    ]
    if compared.settings:
        heads = [rf"\multicolumn{{{num_measures}}}{{c}}{{{_latex(name.capitalize())}}}" for name in compared.settings]
        lines.append(" & ".join([*[""] * len(compared.axes), *heads]) + r" \\")
    header = [*compared.axes, *compared.measures * num_groups]
    lines += [" & ".join(map(_latex, header)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(_latex, [*key, *cells])) + r" \\" for key, cells in compared.rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*lines, *(rf"\par{{\footnotesize {_latex(note)}}}" for note in compared.notes)])


def table_files(trials: pd.DataFrame, axes: Sequence[str]) -> dict[str, bytes]:
    """The contents of `results` as CSV, Parquet and Markdown, the last over seeds, and of `table` as LaTeX."""
    differences = seed_differences(trials, axes)
    markdown = markdown_table(seed_summary(trials, axes)) + "\n"
    if len(differences):
        markdown += f"\nDifferences to vanilla with the same seed:\n\n{markdown_table(differences, '+.1f')}\n"
    return {
        "results.csv": trials.to_csv(index=False).encode(),
        "results.parquet": trials.to_parquet(),
        "results.md": markdown.encode(),
        "table.tex": (latex_table(comparison(trials, axes)) + "\n").encode(),
    }


def by_axes(summary: pd.DataFrame, others: Sequence[str]) -> dict[tuple[str, ...], dict[Any, Row]]:
    """Rows of a summary by the values of the other axes, and by the setting."""
    found: dict[tuple[str, ...], dict[Any, Row]] = {}
    for row in summary.to_dict("records"):
        found.setdefault(tuple(axis_text(axis, row[axis]) for axis in others), {})[row.get(SETTING)] = row
    return found


def holds(trials: pd.DataFrame, column: str, value: str) -> "pd.Series[bool]":
    """Whether each trial has the value; none has one of a column that is missing."""
    return (trials[column] == value).astype(bool) if column in trials else pd.Series(False, index=trials.index)


def axis_text(axis: str, value: Any) -> str:
    """A value of an axis; a regime without a limit is all images.

    >>> axis_text("data.images_per_class", None), axis_text("objective.threshold_scale", None), axis_text("lr", 1e-4)
    ('all', 'none', '0.0001')
    """
    if pd.isna(value):
        return "all" if axis in _REGIMES else "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _typed(values: Sequence[Any]) -> "pd.Series[Any]":
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pd.Series(values, dtype="boolean")
    if kinds == {int}:
        return pd.Series(values, dtype="Int64")
    if kinds <= {int, float}:
        return pd.Series(values, dtype="float64")
    texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pd.Series(texts, dtype="str")


def _columns(summary: pd.DataFrame) -> tuple[list[str], list[str]]:
    """(axes, measures) of a summary."""
    measures = [name for name in MEASURES if f"{name}_mean" in summary]
    statistics = {f"{name}_{statistic}" for name in measures for statistic in ("mean", "std", "count")}
    others = statistics | {"trials", "not_finite", "collapsed"}
    return [str(column) for column in summary.columns if column not in others], measures


def _title(measure: str) -> str:
    return MEASURES[measure] + (" [%]" if measure in _SHARES else "")


def _cell(row: Row, measure: str, form: str) -> str:
    if not row.get(f"{measure}_count"):
        return "NA" if row["not_finite"] else "–"
    mean, std = (_scaled(row[f"{measure}_{statistic}"], measure) for statistic in ("mean", "std"))
    return f"{mean:{form}}" + ("" if pd.isna(std) else f" ± {std:.1f}")


def _scaled(value: float, measure: str) -> float:
    return 100 * value if measure in _SHARES else value


def _counts(row: Row) -> str:
    """How many trials a row stands for: `2 of 3, 1 NA` where one of three has no result, as its loss was not finite."""
    num_measured = max([0, *(count for name, count in row.items() if name.endswith("_count"))])
    counts = [f"{row['trials']}" if num_measured == row["trials"] else f"{num_measured} of {row['trials']}"]
    counts += [f"{row['not_finite']} NA"] * bool(row["not_finite"])
    return ", ".join(counts + [f"{row['collapsed']} collapsed"] * bool(row["collapsed"]))


def _compared(row: Row | None, difference: Row | None, measure: str) -> str:
    if row is None:
        return "–"
    text, count = _cell(row, measure, ".1f"), row.get(f"{measure}_count", 0)
    if difference is not None and difference.get(f"{measure}_count"):
        text += f" ({_scaled(difference[f'{measure}_mean'], measure):+.1f})"
    return text + COLLAPSED_MARK * bool(row["collapsed"]) + INCOMPLETE_MARK * bool(0 < count < row["trials"])


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


_LATEX = {letter: rf"\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "*": r"$^*$",
    "–": "--",
}
