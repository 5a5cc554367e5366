import html
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from glsd.reporting.report import report
from glsd.reporting.sweep_table import sweep_axes, sweep_table
from glsd.runs.directory import RunDirectory
from glsd.runs.lease import LeaseTimes
from glsd.runs.sweep import trial_states
from tests.glsd.runs.sweeps import BASE, ATrial, a_sweep, name_of
from tests.glsd.storage.object_store import object_store

SETTING, REGIME = "objective.setting", "data.images_per_class"
QUICK = LeaseTimes(heartbeat_s=0.05, grace_s=0.2, lapse_s=0.3, settle_s=0.05)


def settings(setting: str, regime: int | None, seed: int) -> dict[str, Any]:
    return {SETTING: setting, REGIME: regime, "seed": seed}


FINISHED = [
    ATrial(settings(setting, regime, seed), knn=knn + 0.02 * seed, num_images=32 * (regime or 50))
    for setting, knns in {"vanilla": (0.5, 0.75), "geometric": (0.55, 0.775)}.items()
    for regime, knn in zip((10, None), knns, strict=True)
    for seed in (0, 1)
]
LOST = ATrial(
    settings("similarity", 10, 0), "not finite", knn=0.25, epochs_done=2, message="the loss became infinite within [21]"
)
COLLAPSED = ATrial(settings("similarity", 10, 1), knn=0.0625, collapsed=True)
STOPPED = ATrial(
    settings("similarity", None, 0), "stopped", knn=None, epochs_done=1, message="at 25 % by the scheduler"
)
FAILED = ATrial(settings("similarity", None, 1), "failed", knn=None, epochs_done=1, message="<b>disk full</b>")
RUNNING = ATrial(settings("similarity", None, 2), "started", epochs_done=2)
WAITING = ATrial(settings("similarity", None, 3), "waiting")
TROUBLED = [LOST, COLLAPSED, STOPPED, FAILED, RUNNING, WAITING]


def row_of(trials: pd.DataFrame, trial: ATrial) -> dict[str, Any]:
    (row,) = trials[trials["trial"] == name_of(trial)].to_dict("records")
    return {str(key): None if pd.isna(value) else value for key, value in row.items()}


def page_of(folder: Path) -> str:
    return Path(report(str(folder))).read_text("utf-8")


def text_of(page: str, section: str | None = None) -> str:
    """What a reader sees of the page or of one section, with single spaces."""
    found = page[page.index("<body>") :]
    if section is not None:
        (found,) = re.findall(rf'<section id="{section}">(.*?)</section>', page, re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", found.replace("<wbr>", ""))).split())


def test_a_row_has_the_settings_the_evaluation_and_the_cost_of_a_trial(tmp_path: Path) -> None:
    trial = ATrial(settings("geometric", 10, 1), knn=0.5625, accuracy=0.375, error_px=12.5, gpus=0.5)
    (row,) = sweep_table(trial_states(str(a_sweep(tmp_path, [trial])))).to_dict("records")
    expected = {
        "trial": name_of(trial), "data": "photos", SETTING: "geometric", REGIME: 10, "seed": 1, "num_images": 320,
        "batch_size": 32, "epochs": 4, "total_steps": 40, "steps": 40, "images_seen": 1280, "status": "finished",
        "verdict": "healthy", "loss": 5.0, "knn": 0.5625, "knn_online": 0.25 + 3 * 0.05, "knn_untrained": 0.1875,
        "majority": 0.0625, "accuracy": 0.375, "accuracy_top": 0.75, "error_px": 12.5, "error_top_px": 4.0,
        # 1280 images at 320 a second are 4 seconds, on half a GPU
        "images_per_s": 320.0, "train_hours": 4 / 3600, "gpu_hours": 2 / 3600,
    }  # fmt: skip
    assert math.isnan(row.pop("message"))
    assert row == pytest.approx(expected)


def test_a_trial_whose_loss_was_not_finite_is_na_though_its_checkpoint_was_evaluated(tmp_path: Path) -> None:
    row = row_of(sweep_table(trial_states(str(a_sweep(tmp_path, [LOST])))), LOST)
    measures = [row[name] for name in ("knn", "accuracy", "accuracy_top", "error_px", "error_top_px")]
    assert measures == [None] * 5
    assert (row["status"], row["knn_online"], row["steps"]) == ("not finite", 0.25 + 0.05, 20)


def test_trials_that_have_not_ended_are_rows_as_far_as_they_are(tmp_path: Path) -> None:
    trials = sweep_table(trial_states(str(a_sweep(tmp_path, [RUNNING, WAITING]))))
    running, waiting = row_of(trials, RUNNING), row_of(trials, WAITING)
    assert (running["status"], running["steps"], running["images_seen"], running["knn"]) == ("started", 20, 640, None)
    assert running["gpu_hours"] == pytest.approx(2 / 3600)  # of its one GPU; 640 images at 320 a second
    assert (waiting["status"], waiting["steps"], waiting["batch_size"], waiting["loss"]) == ("waiting", 0, None, None)
    assert waiting[SETTING] == "similarity"


def test_axes_are_what_varies_but_no_number_that_goes_with_a_name(tmp_path: Path) -> None:
    backbones = [{"model.backbone": "swin", "model.drop_path": 0.1}, {"model.backbone": "vit", "model.drop_path": 0.2}]
    trials = [
        ATrial(backbone | {SETTING: setting, "optim.base_lr": 0.001, "seed": seed}, status="waiting")
        for backbone in backbones
        for setting in ("vanilla", "geometric")
        for seed in (0, 1)
    ]
    table = sweep_table(trial_states(str(a_sweep(tmp_path / "bundled", trials))))
    assert sweep_axes(table) == ["model.backbone", SETTING, "seed"]
    table = sweep_table(trial_states(str(a_sweep(tmp_path / "regimes", FINISHED))))
    assert sweep_axes(table) == [SETTING, REGIME, "seed"]


def test_an_axis_that_a_larger_grid_added_has_the_base_value_in_earlier_trials(tmp_path: Path) -> None:
    earlier = ATrial({"seed": 0})
    later = ATrial({"seed": 0, "optim.base_lr": 0.25})
    trials = sweep_table(trial_states(str(a_sweep(tmp_path, [earlier, later]))))
    assert trials["optim.base_lr"].tolist() == [BASE.optim.base_lr, 0.25]


def test_a_finished_sweep_has_tables_and_figures_that_place_all_images_at_their_number_of_a_class(
    tmp_path: Path,
) -> None:
    folder = a_sweep(tmp_path / "regimes", FINISHED)
    page = page_of(folder)
    assert "✓ 8 trials ended" in text_of(page)
    results = text_of(page, "results")
    # stdev of 0.50 and 0.52 is 0.014
    assert "10 51.0 ± 1.4 56.0 ± 1.4 (+5.0)" in results
    assert "all 76.0 ± 1.4 78.5 ± 1.4 (+2.5)" in results
    assert "geometric 10 +5.0 ± 0.0" in results
    assert "None: no trial that has ended failed" in text_of(page, "not-as-planned")
    assert "10 0 of 2 0 of 2" in text_of(page, "collapse")
    # 8 trials of 4 seconds
    assert "0.00889 GPU hours of training 10,240 images seen" in text_of(page, "cost")
    assert "The call that made it resumes what is not finished." in text_of(page, "settings")
    drawn = ("regimes", "curves", "collapse_1", "collapse_2")
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if "trials" not in path.parts} == {
        *("sweep.json", "report.html", "results.csv", "results.parquet", "results.md", "table.tex", "figures"),
        *(f"figures/{stem}.{kind}" for stem in drawn for kind in ("png", "svg")),
    }
    assert page.count('<figure class="picture"') == 4
    csv, parquet = pd.read_csv(folder / "results.csv"), pd.read_parquet(folder / "results.parquet")
    assert csv["trial"].tolist() == parquet["trial"].tolist() == [name_of(trial) for trial in FINISHED]
    assert csv["knn"].tolist() == pytest.approx([trial.knn for trial in FINISHED])
    # The regime of all images lies at 50 of a class: 10 of each are 320, so there are 32 classes, of 1600 images.
    assert "images per class (all: 50)" in (folder / "figures/regimes.svg").read_text("utf-8")
    assert page_of(folder).count('<figure class="picture"') == 4  # again, its own files being no part of the sweep


def test_no_trial_is_hidden_and_every_failure_says_what_it_said(tmp_path: Path) -> None:
    page = page_of(a_sweep(tmp_path / "sweep", [*FINISHED, *TROUBLED]))
    seen = text_of(page)
    for badge in ("interrupted, 12 of 14 trials", "1 failed", "1 not finite", "1 collapsed"):
        assert f"✗ {badge}" in seen
    told = text_of(page, "not-as-planned")
    assert f"{name_of(LOST)} not finite 20 of 40 the loss became infinite within [21]; its last checkpoint has a k-NN "\
        "accuracy of 25.0 %" in told  # fmt: skip
    assert f"{name_of(COLLAPSED)} finished, collapsed 40 of 40 information_dense 0.0005 is below 0.005" in told
    assert f"{name_of(STOPPED)} stopped 10 of 40 at 25 % by the scheduler" in told
    assert f"{name_of(FAILED)} failed 10 of 40 <b>disk full</b>" in told
    assert "<b>disk" not in page
    everything = text_of(page, "all-trials")
    assert all(name_of(trial) in everything for trial in (*FINISHED, *TROUBLED))
    assert f"{name_of(RUNNING)} started healthy 20 of 40" in everything
    assert f"{name_of(WAITING)} waiting – 0 of 40 – – –" in everything
    # The seed whose loss was not finite is missing in the mean, and the one that collapsed is in it.
    assert "10 51.0 ± 1.4 56.0 ± 1.4 (+5.0) 6.2 (-45.8)†*" in text_of(page, "results")
    assert "all 76.0 ± 1.4 78.5 ± 1.4 (+2.5) –" in text_of(page, "results")
    assert "1 of 2, 1 NA, 1 collapsed" in text_of(page, "results")


def test_a_sweep_at_work_says_how_many_trials_are_done(tmp_path: Path) -> None:
    folder = a_sweep(tmp_path / "sweep", [FINISHED[0], RUNNING, WAITING])
    with RunDirectory(str(folder)).lease(times=QUICK):
        assert "○ running, 1 of 3 trials" in text_of(page_of(folder))
    assert "✗ interrupted, 1 of 3 trials" in text_of(page_of(folder))


def test_a_sweep_that_has_measured_nothing_has_a_page(tmp_path: Path) -> None:
    page = page_of(a_sweep(tmp_path / "sweep", [WAITING]))
    assert "interrupted, 0 of 1 trials" in text_of(page)
    assert "<figure" not in page
    assert "No trial has been tested by k-NN yet." in text_of(page, "curves")
    assert "No trial has a verdict yet." in text_of(page, "collapse")


def test_a_numeric_axis_is_drawn_across_and_names_alone_are_dots(tmp_path: Path) -> None:
    rates = [ATrial({"optim.base_lr": rate, "seed": seed}) for rate in (0.001, 0.002) for seed in (0, 1)]
    report(str(a_sweep(tmp_path / "rates", rates)))
    assert "base lr" in (tmp_path / "rates/figures/regimes.svg").read_text("utf-8")
    names = [ATrial({SETTING: name, "seed": 0}, data=data) for name in ("vanilla", "geometric") for data in "ab"]
    report(str(a_sweep(tmp_path / "names", names)))
    assert (tmp_path / "names/figures/comparison.svg").exists()
    assert not (tmp_path / "names/figures/regimes.svg").exists()


def test_further_axes_have_a_figure_each(tmp_path: Path) -> None:
    trials = [
        ATrial(settings(setting, regime, 0), data=data)
        for data in ("food101", "nct_crc")
        for setting in ("vanilla", "geometric")
        for regime in (10, 20)
    ]
    page = page_of(a_sweep(tmp_path / "sweep", trials))
    assert "Over images per class, data food101." in text_of(page, "results")
    assert "Over images per class, data nct_crc." in text_of(page, "results")
    assert (tmp_path / "sweep/figures/regimes_2.png").exists()


def test_what_is_no_sweep_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a sweep: it has no sweep\.json"):
        trial_states(str(tmp_path))
    with pytest.raises(ValueError, match=r"neither a run nor an evaluation nor a sweep: .*no sweep\.json"):
        report(str(tmp_path))
    with pytest.raises(ValueError, match="names no trial"):
        report(str(a_sweep(tmp_path / "empty", [])))


def test_a_sweep_on_an_object_store_is_reported_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_sweep(tmp_path / "bucket/my sweep", FINISHED[:2])
    for name in ("AWS_EC2_METADATA_DISABLED", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "true")
    with object_store(tmp_path) as address:
        options = f"?endpoint_override={address}&scheme=http&region=us-east-1"
        assert report(f"s3://bucket/my sweep{options}") == f"s3://bucket/my sweep/report.html{options}"
    written = tmp_path / "bucket/my sweep"
    assert "<h1>my sweep</h1>" in (written / "report.html").read_text("utf-8")
    assert pd.read_parquet(written / "results.parquet")["knn"].tolist() == [0.5, 0.52]
    assert (written / "figures/comparison.png").read_bytes().startswith(b"\x89PNG")
