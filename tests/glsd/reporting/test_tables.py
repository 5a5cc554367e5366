import io
import json
import math
import re
import statistics
from collections.abc import Mapping
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glsd.reporting.tables import (
    comparison,
    latex_table,
    markdown_table,
    seed_differences,
    seed_summary,
    table_cells,
    table_files,
    tidy_table,
    varied,
)

SETTING, REGIME = "objective.setting", "data.images_per_class"
AXES = [SETTING, REGIME, "seed"]


def trial(setting: str, regime: int | None, seed: int, knn: float | None, **facts: Any) -> dict[str, Any]:
    lost = {"status": "finished", "verdict": "healthy"} | facts
    return {SETTING: setting, REGIME: regime, "seed": seed, "knn": knn} | lost


TRIALS = [
    trial("vanilla", 10, 0, 0.50),
    trial("vanilla", 10, 1, 0.54),
    trial("vanilla", None, 0, 0.70),
    trial("vanilla", None, 1, 0.74),
    trial("similarity", 10, 0, 0.02, verdict="collapsed"),
    trial("similarity", 10, 1, 0.04, verdict="collapsed"),
    trial("similarity", None, 0, None, status="not finite"),
    trial("similarity", None, 1, None, status="not finite", verdict="collapsed"),
    trial("geometric", 10, 0, 0.53),
    trial("geometric", 10, 1, 0.59),
    trial("geometric", None, 0, None, status="failed"),
    trial("geometric", None, 1, 0.75),
]


def row_of(summary: pd.DataFrame, **key: Any) -> Mapping[Any, Any]:
    (row,) = [
        row
        for row in summary.to_dict("records")
        if all(pd.isna(row[axis]) if value is None else row[axis] == value for axis, value in key.items())
    ]
    return row


accuracies = st.none() | st.floats(0, 1)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.integers(1, 3), accuracies), min_size=1, max_size=12))
def test_summaries_are_means_deviations_and_counts_over_seeds(
    cells: list[tuple[str, int | None, float | None]],
) -> None:
    trials = tidy_table([trial(name, regime, seed, knn) for seed, (name, regime, knn) in enumerate(cells)])
    rows = seed_summary(trials, AXES).to_dict("records")
    keys = [(row[SETTING], None if pd.isna(row[REGIME]) else row[REGIME]) for row in rows]
    assert keys == list(dict.fromkeys((name, regime) for name, regime, _ in cells))
    for key, row in zip(keys, rows, strict=True):
        values = [knn for name, regime, knn in cells if (name, regime) == key and knn is not None]
        assert row["trials"] == sum((name, regime) == key for name, regime, _ in cells)
        if all(knn is None for _, _, knn in cells):
            assert "knn_count" not in row
            continue
        assert row["knn_count"] == len(values)
        assert row["knn_mean"] == pytest.approx(statistics.fmean(values) if values else math.nan, nan_ok=True)
        deviation = statistics.stdev(values) if len(values) > 1 else math.nan
        assert row["knn_std"] == pytest.approx(deviation, abs=1e-12, nan_ok=True)


def test_without_an_axis_all_trials_are_one_row() -> None:
    (row,) = seed_summary(tidy_table([{"knn": 0.5}, {"knn": 0.25}]), []).to_dict("records")
    assert (row["knn_mean"], row["knn_count"], row["trials"]) == (0.375, 2, 2)


def test_differences_are_of_pairs_with_the_same_seed() -> None:
    differences = seed_differences(tidy_table(TRIALS), AXES)
    ten = row_of(differences, **{SETTING: "geometric", REGIME: 10})
    # 0.53 - 0.50 and 0.59 - 0.54; the deviation of these, not of the accuracies
    assert (ten["knn_mean"], ten["knn_std"]) == pytest.approx((0.04, statistics.stdev([0.03, 0.05])))
    everything = row_of(differences, **{SETTING: "geometric", REGIME: None})
    # Only seed 1 has both: 0.75 - 0.74, where the means would differ by 0.75 - 0.72.
    assert (everything["knn_mean"], everything["knn_count"], everything["trials"]) == (pytest.approx(0.01), 1, 2)
    assert set(differences[SETTING]) == {"similarity", "geometric"}


def test_there_are_no_differences_without_a_vanilla_trial_or_a_second_setting() -> None:
    assert seed_differences(tidy_table(TRIALS[4:]), AXES).empty
    assert seed_differences(tidy_table(TRIALS[:4]), [REGIME, "seed"]).empty
    assert seed_differences(tidy_table(TRIALS), [REGIME, "seed"]).empty


def test_table_3_compares_settings_with_differences_to_vanilla_in_brackets() -> None:
    compared = comparison(tidy_table(TRIALS), AXES, ["knn"])
    assert (compared.axes, compared.settings) == ([REGIME], ["vanilla", "similarity", "geometric"])
    # stdev of two is their distance / sqrt 2: 4 / 1.414 = 2.8, 2 / 1.414 = 1.4, 6 / 1.414 = 4.2
    assert compared.rows == [
        (["10"], ["52.0 ± 2.8", "3.0 ± 1.4 (-49.0)†", "56.0 ± 4.2 (+4.0)"]),
        (["all"], ["72.0 ± 2.8", "NA†", "75.0 (+1.0)*"]),
    ]
    assert [note[0] for note in compared.notes] == ["†", "*"]


def test_na_is_a_loss_that_was_not_finite_and_a_dash_is_nothing_measured() -> None:
    trials = tidy_table(
        [
            trial("vanilla", 10, 0, 0.5),
            trial("similarity", 10, 0, None, status="not finite"),
            trial("geometric", 10, 0, None, status="started"),
        ]
    )
    ((_, cells),) = comparison(trials, AXES, ["knn"]).rows
    assert cells == ["50.0", "NA", "–"]
    _, rows = table_cells(seed_summary(trials, AXES))
    assert [row[-2:] for row in rows] == [["50.0", "1"], ["NA", "0 of 1, 1 NA"], ["–", "0 of 1"]]


def test_a_setting_that_an_axis_lacks_is_a_dash() -> None:
    compared = comparison(tidy_table([trial("vanilla", 10, 0, 0.5), trial("geometric", 20, 0, 0.6)]), AXES, ["knn"])
    assert compared.rows == [(["10"], ["50.0", "–"]), (["20"], ["–", "60.0"])]


def test_markdown_counts_the_trials_of_each_row_and_what_became_of_them() -> None:
    lines = markdown_table(seed_summary(tidy_table(TRIALS), AXES)).splitlines()
    assert lines[0] == "| objective.setting | data.images_per_class | k-NN [%] | trials |"
    assert lines[4:] == [
        "| similarity | 10 | 3.0 ± 1.4 | 2, 2 collapsed |",
        "| similarity | all | NA | 0 of 2, 2 NA, 1 collapsed |",
        "| geometric | 10 | 56.0 ± 4.2 | 2 |",
        "| geometric | all | 75.0 | 1 of 2 |",
    ]


def test_pixels_are_no_shares() -> None:
    header, rows = table_cells(seed_summary(tidy_table([{"knn": 0.5, "accuracy": 0.25, "error_px": 12.34}]), []))
    assert header == ["k-NN [%]", "correspondence [%]", "error [px]", "trials"]
    assert rows == [["50.0", "25.0", "12.3", "1"]]


def test_latex_escapes_what_it_would_read_as_commands() -> None:
    trials = tidy_table(
        [
            trial("vanilla", 10, 0, 0.5) | {"data": r"50%_of$my #1 & {2}~^\x"},
            trial("similarity", 10, 0, 0.25, verdict="collapsed") | {"data": r"50%_of$my #1 & {2}~^\x"},
        ]
    )
    text = latex_table(comparison(trials, ["data", SETTING, "seed"], ["knn"]))
    escaped = r"50\%\_of\$my \#1 \& \{2\}\textasciitilde{}\textasciicircum{}\textbackslash{}x"
    assert rf"{escaped} & 50.0 & 25.0 (-25.0)$^\dagger$ \\" in text
    assert r"k-NN [\%]" in text


def test_latex_rows_have_as_many_cells_as_the_table_has_columns() -> None:
    text = latex_table(comparison(tidy_table(TRIALS), AXES, ["knn"]))
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)
    assert columns is not None
    assert columns[1] == "lrrr"
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert [line.count("&") for line in rows] == [3] * len(rows)
    assert r" & \multicolumn{1}{c}{Vanilla} & \multicolumn{1}{c}{Similarity} & \multicolumn{1}{c}{Geometric} \\" in text
    assert r"all & 72.0 $\pm$ 2.8 & NA$^\dagger$ & 75.0 (+1.0)$^*$ \\" in text


def test_where_nothing_is_measured_the_table_has_dashes_for_the_knn() -> None:
    started = tidy_table([trial(setting, 10, 0, None, status="started") for setting in ("vanilla", "geometric")])
    lines = latex_table(comparison(started, AXES)).splitlines()
    assert lines[0] == r"\begin{tabular}{lrr}"
    assert lines[3:6] == [r"data.images\_per\_class & k-NN [\%] & k-NN [\%] \\", r"\midrule", r"10 & -- & -- \\"]
    assert comparison(tidy_table([{"status": "not finite", "seed": 0}]), ["seed"]).rows == [([], ["NA"])]


def test_a_collapsed_trial_is_marked_though_nothing_was_measured() -> None:
    trials = [trial("vanilla", 10, 0, 0.5), trial("geometric", 10, 0, None, status="collapsed", verdict="collapsed")]
    compared = comparison(tidy_table(trials), AXES, ["knn"])
    assert compared.rows == [(["10"], ["50.0", "–†"])]
    assert [note[0] for note in compared.notes] == ["†"]


def test_columns_keep_their_types_beside_none() -> None:
    trials = tidy_table(
        [
            {"whole": 10, "share": 1, "on": True, "list": [96, 64], "word": "a", "mixed": "all"},
            {"whole": None, "share": 0.5, "on": None, "list": None, "word": None, "mixed": 3},
        ]
    )
    assert {name: str(kind) for name, kind in trials.dtypes.items()} == {
        **{"whole": "Int64", "share": "float64", "on": "boolean", "list": "str", "word": "str", "mixed": "str"}
    }
    assert trials["list"].tolist()[0] == "[96, 64]"
    assert trials.isna().sum(axis="columns").tolist() == [0, 4]


def test_varied_axes_have_two_values_or_one_and_none() -> None:
    trials = tidy_table([{"a": 1, "b": 2, "c": None, "seed": 0}, {"a": 1, "b": None, "c": None, "seed": 1}])
    assert varied(trials, ["a", "b", "c", "seed"]) == ["b", "seed"]


def test_files_hold_the_table_and_its_summary() -> None:
    trials = tidy_table(TRIALS)
    files = table_files(trials, AXES)
    assert list(files) == ["results.csv", "results.parquet", "results.md", "table.tex"]
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(files["results.parquet"])), trials)
    read = pd.read_csv(io.BytesIO(files["results.csv"]))
    assert read["knn"].tolist() == pytest.approx([entry["knn"] or math.nan for entry in TRIALS], nan_ok=True)
    assert read[REGIME].isna().tolist() == [entry[REGIME] is None for entry in TRIALS]
    assert files["results.csv"].decode().splitlines()[1] == "vanilla,10,0,0.5,finished,healthy"
    summary, differences = files["results.md"].decode().split("\nDifferences to vanilla with the same seed:\n\n")
    assert summary == markdown_table(seed_summary(trials, AXES)) + "\n"
    assert "| geometric | 10 | +4.0 ± 1.4 | 2 |" in differences
    assert files["table.tex"].decode() == latex_table(comparison(trials, AXES)) + "\n"


def test_a_list_of_a_trial_reads_back_as_json() -> None:
    files = table_files(tidy_table([{"augment.local_sizes": [96, 64], "knn": 0.5}]), ["augment.local_sizes"])
    read = pd.read_csv(io.BytesIO(files["results.csv"]))
    assert json.loads(read["augment.local_sizes"][0]) == [96, 64]
