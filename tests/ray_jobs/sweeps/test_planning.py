"""What a sweep does before and after its trials; nothing here starts Ray."""

import html
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glsd.data.index import build_index
from glsd.reporting.console import states_table
from glsd.reporting.report import report
from glsd.runs.sweep import trial_states
from ray_jobs.cli.main import main, parse
from ray_jobs.cli.verbs import Sweep
from ray_jobs.progress import ProgressLine
from ray_jobs.settings import JobSettings
from ray_jobs.sweeps.grids import Trial
from ray_jobs.sweeps.job import beside, sweep
from ray_jobs.sweeps.live import fitting_table
from ray_jobs.sweeps.options import SweepOptions
from ray_jobs.sweeps.planning import Common, not_ended, plan
from ray_jobs.sweeps.rounds import reached
from tests.glsd.runs.sweeps import BASE, ATrial, a_sweep, name_of
from tests.images import labelled_folder

RATES = "optim.base_lr=0.001,0.002"


def a_rate(rate: float, status: str = "finished", **facts: Any) -> ATrial:
    return ATrial({"optim.base_lr": rate, "seed": 0}, status, **facts)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_folder(tmp_path_factory.mktemp("images") / "my photos", num_images=32)


@pytest.fixture
def call(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`glsd sweep` of a grid with further words, over trials that stand in `tmp_path / "sweep"`."""
    monkeypatch.setenv("GLSD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "base.yaml").write_text(BASE.to_yaml())

    def words(grid: str, *further: str) -> list[str]:
        place = ["--base", str(tmp_path / "base.yaml"), "--data", f"photos={photos}", "--out", str(tmp_path / "sweep")]
        return ["sweep", grid, *place, *further]

    return words


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--pairs", "0"], "--pairs must be 1 or more, not 0"),
        (["--retries", "-1"], "--retries must be 0 or more, not -1"),
        (["--concurrent", "0"], "--concurrent must be 1 or more, not 0"),
        (["--samples", "0"], "--samples must be 1 or more, not 0"),
    ],
)
def test_a_number_that_would_run_for_nothing_is_refused(call, capsys, option, message) -> None:
    assert message in refused(call("learning_rate", *option), capsys)


def test_a_folder_that_holds_something_else_is_refused(call, capsys, tmp_path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/config.yaml").touch()
    assert "holds config.yaml but no sweep.json, so it is not a sweep" in refused(call("learning_rate"), capsys)
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["config.yaml"]


def test_an_evaluation_on_maps_of_a_single_location_is_refused_before_it_is_trained_for(call, capsys) -> None:
    said = refused(call("learning_rate", "--grid", "evaluation.crop=32", "--dry_run"), capsys)
    assert "has a single location in a crop of 32 px" in said


@pytest.mark.parametrize(
    ("share", "gpus", "workers", "trials"),
    [(1, 8, 1, 8), (1, 8, 4, 2), (0.6, 2, 1, 2), (0.4, 2, 1, 4), (1 / 3, 2, 1, 6), (0.25, 1, 2, 2), (0.1, 1, 1, 10)],
)
def test_a_gpu_holds_whole_workers(share, gpus, workers, trials) -> None:
    total, reserved = {"CPU": 64.0, "GPU": float(gpus)}, {"CPU": 0.01, "GPU": share}
    assert beside(total, reserved, workers, None) == trials
    assert beside(total, reserved, workers, trials + 1) == trials
    assert beside(total, reserved, workers, 1) == 1


def test_a_trial_on_cpus_has_four_cores_or_what_is_asked_and_a_core_for_its_stream() -> None:
    reserved = {"CPU": 0.01}
    assert [beside({"CPU": cpus}, reserved, 1, None) for cpus in (3.0, 8.0, 17.0)] == [1, 2, 4]
    assert [beside({"CPU": 3.0}, reserved, 1, asked) for asked in (1, 2, 3)] == [1, 2, 2]
    assert beside({"CPU": 16.0}, {"CPU": 1.0}, 7, None) == 2  # seven workers and their stream


@pytest.mark.parametrize(
    "given",
    [
        Sweep("threshold", ("a b", "food=s3://bucket/it's"), "runs/x"),
        Sweep(
            "my grid.yaml", ("photos",), "x",
            options=SweepOptions(
                grid=("a.b=1,[2, 3]",), seeds=(0, 1), samples=3, scheduler="asha", search="optuna",
                stop_collapsed=True, retries=0, concurrent=2, pairs=8, test=("t",),
            ),
            job=JobSettings(workers=2, gpu=False, gpus_per_worker=0.25, dashboard=True, loggers=("wandb", "mlflow")),
        ),
    ],
)  # fmt: skip
def test_the_command_of_a_call_is_that_call(given: Sweep) -> None:
    program, *words = shlex.split(shlex.join(given.command()))
    assert (program, parse(words)) == ("glsd", given)


def test_a_sweep_that_has_ended_is_reported_with_its_newest_command(call, tmp_path, photos) -> None:
    ended = [a_rate(0.001), a_rate(0.002)]
    folder = a_sweep(tmp_path / "sweep", ended)
    for seeds in ([], ["--seeds", "0"]):
        words = call("learning_rate", "--grid", RATES, *seeds)
        main(words)
    page = (folder / "report.html").read_text("utf-8").replace("<wbr>", "")
    assert "2 trials ended" in page
    (command,) = re.findall(r"<code>(glsd sweep .*?)</code>", page, re.DOTALL)
    assert parse(shlex.split(html.unescape(command))[1:]) == parse(words)
    assert list(json.loads((folder / "sweep.json").read_text())["trials"]) == [name_of(trial) for trial in ended]


def test_settings_that_go_together_are_one_axis_of_the_figures_and_columns_of_the_tables(call, tmp_path) -> None:
    pairs = [(0.001, 0.1), (0.002, 0.2), (0.004, 0.1)]
    trials = [
        ATrial({"optim.weight_decay": decay, "optim.base_lr": rate, "objective.setting": setting, "seed": 0}, knn=rate)
        for rate, decay in pairs
        for setting in ("vanilla", "geometric")
    ]
    folder = a_sweep(tmp_path / "sweep", trials)
    (tmp_path / "mine.yaml").write_text(
        "optim.weight_decay: [0.1, 0.2, 0.1]\noptim.base_lr: [1e-3, 2e-3, 4e-3]\n"
        "objective.setting: [vanilla, geometric]\ntogether: [[optim.weight_decay, optim.base_lr]]\n"
    )
    main(call(str(tmp_path / "mine.yaml")))  # all trials have ended, and are found by their names
    assert json.loads((folder / "sweep.json").read_text())["together"] == [["optim.weight_decay", "optim.base_lr"]]
    page = (folder / "report.html").read_text("utf-8")
    assert "Over base lr with weight decay" in page
    assert {path.name for path in (folder / "figures").glob("regimes*.svg")} == {"regimes.svg"}
    lines = (folder / "results.md").read_text("utf-8").splitlines()
    assert lines[0].startswith("| optim.weight_decay | optim.base_lr | objective.setting |")
    assert len(lines[2 : lines.index("")]) == 6


def test_what_goes_together_with_the_setting_is_no_row_of_its_own(call, tmp_path) -> None:
    sizes = {"vanilla": [32], "geometric": [32, 48]}
    crops = {"vanilla": [4], "geometric": [2, 2]}
    trials = [
        ATrial(
            {
                "objective.setting": setting,
                "augment.local_sizes": sizes[setting],
                "augment.num_local_crops": crops[setting],
                "seed": seed,
            }
        )
        for setting in sizes
        for seed in (0, 1)
    ]
    bundle = ["objective.setting", "augment.local_sizes", "augment.num_local_crops"]
    folder = a_sweep(tmp_path / "sweep", trials, together=[bundle])
    report(str(folder))
    assert "| geometric | 50.0 ± 0.0 |" in (folder / "results.md").read_text("utf-8")


def test_the_number_of_pairs_may_change_until_a_trial_was_measured_with_it(call, capsys, tmp_path) -> None:
    folder = a_sweep(tmp_path / "sweep", [a_rate(0.001), a_rate(0.002)])
    words = call("learning_rate", "--grid", RATES)
    main(words)
    assert "was evaluated with --pairs 1000; choose that" in refused([*words, "--dry_run", "--pairs", "8"], capsys)
    for evaluation in folder.rglob("evaluation.json"):
        found = json.loads(evaluation.read_text())
        evaluation.write_text(json.dumps({key: value for key, value in found.items() if key != "correspondence"}))
    main([*words, "--dry_run", "--pairs", "8"])


def test_a_trial_on_other_images_is_refused(call, capsys, tmp_path, photos) -> None:
    a_sweep(tmp_path / "sweep", [a_rate(0.001), a_rate(0.002)])
    main(call("learning_rate", "--grid", RATES))
    words = call("learning_rate", "--grid", RATES)
    words[words.index(f"photos={photos}")] = f"photos={labelled_folder(tmp_path / 'other', num_images=36)}"
    assert "is a trial on other images" in refused([*words, "--dry_run"], capsys)


def test_a_trial_on_the_same_images_elsewhere_or_of_an_earlier_version_is_that_trial(call, tmp_path, photos) -> None:
    a_sweep(tmp_path / "sweep", [a_rate(0.001), a_rate(0.002)])
    words = call("learning_rate", "--grid", RATES)
    main(words)
    moved = [*words]
    moved[moved.index(f"photos={photos}")] = f"photos={shutil.copytree(photos, tmp_path / 'moved')}"
    main([*moved, "--dry_run"])
    saved = json.loads((tmp_path / "sweep/sweep.json").read_text())
    key = build_index(photos, BASE.data).key
    for trial in saved["trials"].values():
        trial["images"]["digest"] = key
    (tmp_path / "sweep/sweep.json").write_text(json.dumps(saved))
    main([*words, "--dry_run"])


def test_each_trial_has_the_labels_of_its_own_column(tmp_path: Path, photos: Path, monkeypatch) -> None:
    monkeypatch.setenv("GLSD_CACHE", str(tmp_path / "cache"))
    rows = [f"{path},{number % 2},{number % 4}" for number, path in enumerate(sorted(photos.rglob("*.*")))]
    (tmp_path / "list.csv").write_text("\n".join(["path,coarse,fine", *rows]) + "\n")
    trials = [Trial(column, "photos", {"data.label_column": column}) for column in ("coarse", "fine")]
    data = {"photos": (str(tmp_path / "list.csv"),)}
    common = Common(BASE, data, {}, str(tmp_path / "sweep"), SweepOptions(), JobSettings(gpu=False))
    with ProgressLine() as line:
        planned = plan(trials, common, line)
    assert [p.index.classes for p in planned] == [["0", "1"], ["0", "1", "2", "3"]]


def test_every_trial_s_sizes_are_checked(call, capsys) -> None:
    words = call("learning_rate", "--grid", "data.unit_size=1,32", "augment.global_size=1024", RATES)
    assert "the stream takes 64 MiB; use data.unit_size" in refused([*words, "--dry_run"], capsys)


def test_a_dry_run_of_optuna_shows_what_is_known_and_how_many_it_will_draw(call, capsys, tmp_path) -> None:
    pytest.importorskip("optuna")
    others = [
        ATrial({"objective.setting": "vanilla", "optim.base_lr": 0.001, "seed": 0}),
        a_rate(0.002, data="food"),
        a_rate(0.5),
    ]
    a_sweep(tmp_path / "sweep", [a_rate(0.001), *others])
    words = ["--search", "optuna", "--samples", "5", "--dry_run"]
    main(call("learning_rate", "--grid", "optim.base_lr=0.001,0.002,0.004,0.005,0.006", *words))
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("photos-base_lr_0.001-seed_0-")
    assert said[3].startswith("2 trials, ")
    assert said[4].startswith("Optuna draws 3 more")


def test_a_search_learns_the_evaluation_and_of_a_stopped_trial_its_last_knn(tmp_path) -> None:
    statuses = {
        "finished": a_rate(1),
        "stopped": a_rate(2, "stopped", knn=None, online=0.25, epochs_done=2),
        "fallen": a_rate(3, "stopped", knn=None, online=0.0625, epochs_done=1),
        "untested": a_rate(7, "stopped", knn=None, epochs_done=0),
        "lost": a_rate(4, "not finite", knn=0.5),
        "failed": a_rate(5, "failed", knn=None),
        "waiting": a_rate(6, "waiting"),
    }
    folder = a_sweep(tmp_path, list(statuses.values()))
    values = {name: reached(str(folder / "trials" / name_of(trial))) for name, trial in statuses.items()}
    # Untrained it has 0.125, more than the fallen one.
    assert values == {
        "finished": 0.9375, "stopped": 0.25 + 0.05, "fallen": 0.0625, "untested": 0.0, "lost": 0.0, "failed": None,
        "waiting": None,
    }  # fmt: skip


def test_trials_that_have_not_ended_are_named_in_one_line(call, tmp_path, photos, monkeypatch) -> None:
    call("learning_rate")
    rates = [a_rate(0.001), a_rate(0.002, "failed", knn=None), a_rate(0.004, "started"), a_rate(0.5, "waiting")]
    folder = str(a_sweep(tmp_path / "sweep", rates))
    few, all_of_three = (
        sweep(BASE, "learning_rate", [f"photos={photos}"], folder, options=SweepOptions(grid=(change,), dry_run=True))
        for change in ("optim.base_lr=0.001", "optim.base_lr=0.001,0.002,0.004")
    )
    assert not_ended(few, trial_states(folder)) == ""
    assert not_ended(all_of_three, trial_states(folder)) == (
        f"2 of 3 trials have not ended: {name_of(rates[1])} (failed), {name_of(rates[2])} (started)"
    )


def test_a_table_that_does_not_fit_shows_running_trials_and_counts_the_others(tmp_path) -> None:
    statuses = ["finished", "finished", "failed", "started", "waiting", "waiting"]
    states = trial_states(str(a_sweep(tmp_path, [a_rate(rate, status) for rate, status in enumerate(statuses)])))
    assert fitting_table(states, 7) == states_table(states)
    lines = fitting_table(states, 4).splitlines()
    assert [line.split()[0] for line in lines] == ["trial", name_of(a_rate(3)), name_of(a_rate(0)), "and"]
    assert lines[3] == "and 1 finished, 1 failed, 2 waiting"
    assert [len(fitting_table(states, height).splitlines()) for height in range(2, 7)] == [2, 3, 4, 5, 6]


def test_a_trial_that_has_ended_is_not_read_again(tmp_path) -> None:
    folder = a_sweep(tmp_path, [a_rate(1), a_rate(2, "started", epochs_done=1)])
    before = trial_states(str(folder))
    for name in map(name_of, (a_rate(1), a_rate(2))):
        (folder / "trials" / name / "metrics.jsonl").unlink()
    ended, started = trial_states(str(folder), before)
    assert ended == before[0]
    assert (before[1].metrics != [], started.metrics) == (True, [])


@pytest.mark.slow
def test_ctrl_c_ends_a_verb_with_a_sentence(interruptible: None, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "image")
    started = subprocess.Popen(
        [sys.executable, "-m", "ray_jobs.cli.main", "preview", str(tmp_path / "image")],
        stderr=subprocess.PIPE,
        text=True,
    )
    with (tmp_path / "image").open("wb"):  # which waits until the verb reads
        started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=300)  # a signal that came just before the read is seen at its end
    assert (started.returncode, said) == (130, "glsd: interrupted; rerun the same command to resume\n")
