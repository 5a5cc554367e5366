"""A sweep ends in the same table however often it is killed, and leaves nothing reserved behind."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glsd.config import Config
from glsd.encoder.encoder import model_digest, untrained_encoder
from glsd.runs.checkpoints import load_checkpoint, newest_checkpoint
from glsd.runs.records import Evaluation
from glsd.runs.sweep import trial_states
from ray_jobs.cli.caching import entries
from ray_jobs.evaluation.job import evaluate
from ray_jobs.evaluation.options import EvaluateOptions
from ray_jobs.sweeps.grids import trial_name
from ray_jobs.sweeps.job import sweep
from ray_jobs.sweeps.options import SweepOptions
from tests.images import labelled_folder
from tests.ray_jobs.pretraining.test_kill import TIMEOUT_S, Start
from tests.ray_jobs.runs import complete_checkpoints, json_lines, leaves

pytestmark = pytest.mark.ray


def base(**overrides: object) -> Config:
    """Four epochs of sixty-four images, a k-NN after each."""
    return Config().with_overrides(
        {
            "model.backbone": "test_convnext",
            "model.drop_path": 0.0,
            "model.hidden_dim": 32,
            "model.bottleneck_dim": 16,
            "model.num_prototypes": 64,
            "augment.global_size": 64,
            "augment.local_sizes": (32,),
            "augment.num_local_crops": (1,),
            "optim.batch_size": 8,
            "optim.epochs": 4,
            "optim.warmup_epochs": 1,
            "evaluation.knn_every_epochs": 1,
            "evaluation.k": 5,
            "evaluation.resize": 64,
            "evaluation.crop": 64,
            "data.unit_size": 4,
            "log_every_steps": 2,
            **overrides,
        }
    )


@pytest.fixture(scope="module")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_folder(tmp_path_factory.mktemp("textures") / "photos", num_images=64)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return kept | {"GLSD_CACHE": str(tmp_path / "cache")}


@pytest.fixture
def starts() -> Iterator[list[Start]]:
    """Sweeps as processes; what is left of them ends with the test."""
    starts = list[Start]()
    yield starts
    for start in starts:
        start.kill_all()


# All images vote alike in vanilla's trials, so these name the same class for each: worse than geometric's. Sixteen
# images a class are all there are, so both trials of a setting train alike.
TWINS = """
objective:
- {objective.setting: geometric}
- {objective.setting: vanilla, evaluation.k: 1000, evaluation.temperature: 1000.0}
data.images_per_class: [16, null]
"""

# `glsd sweep`; before its own Ray ends, what is still reserved there is written down.
COMMAND = """
import json, sys, time
from pathlib import Path
import ray
from ray_jobs.cli.main import main
end = ray.shutdown
def look_and_end():
    total, until = ray.cluster_resources()["CPU"], time.monotonic() + 120
    while ray.available_resources()["CPU"] < total and time.monotonic() < until:
        time.sleep(0.5)
    groups = [group["state"] for group in ray.util.placement_group_table().values()]
    left = {"free": ray.available_resources()["CPU"], "total": total, "groups": groups}
    Path("left.json").write_text(json.dumps(left))
    end()
ray.shutdown = look_and_end
main(["sweep", *sys.argv[1:]])
"""


def test_a_sweep_is_killed_then_one_of_its_trials_and_ends_as_if_nothing_had_happened_with_nothing_left_reserved(
    cluster: None, textures: Path, tmp_path: Path, environment: dict[str, str], starts: list[Start]
) -> None:
    # `cluster` is a second Ray on the machine, with which Ray by itself does not find the sweep's dashboard.
    (tmp_path / "base.yaml").write_text(base().to_yaml())
    (tmp_path / "grid.yaml").write_text(TWINS)
    out = tmp_path / "sweep"
    command = [sys.executable, "-c", COMMAND, "grid.yaml", "--base", "base.yaml", "--data", str(textures)]
    command += ["--out", str(out), "--scheduler", "asha", "--concurrent", "1", "--pairs", "8"]

    def start() -> Start:
        log = tmp_path / f"{len(starts)}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, stdout=stream, stderr=stream, env=environment, start_new_session=True, cwd=tmp_path
            )
        starts.append(Start(process, log))
        return starts[-1]

    def logged_before_the_checkpoint() -> list[dict[str, Any]]:
        """Lines of the killed trial that a start from its checkpoint leaves as they are, clock times and all."""
        (*_, step) = complete_checkpoints(killed)
        return [line for line in json_lines(killed / "metrics.jsonl") if line["step"] <= step]

    settings = {"objective.setting": "geometric"}
    undisturbed, killed = (
        out / "trials" / trial_name("data", settings | {"data.images_per_class": number, "seed": 0})
        for number in (16, None)
    )
    started = start()
    started.wait_until(lambda: len(json_lines(killed / "metrics.jsonl")) > 5)  # in the second epoch
    started.kill_all()
    logged = [logged_before_the_checkpoint()]
    ended = (undisturbed / "outcome.json").stat().st_mtime_ns
    again = start()
    again.wait_until(lambda: len(json_lines(killed / "metrics.jsonl")) > 13)  # in the fourth
    logged.append(logged_before_the_checkpoint())
    again.kill_actor("ImplicitFunc")
    assert again.process.wait(TIMEOUT_S) == 0, again.said
    assert "died" in again.said

    lines = json_lines(killed / "metrics.jsonl")
    assert 0 < len(logged[0]) < len(logged[1]) < len(lines)
    assert [lines[: len(kept)] for kept in logged] == logged

    states = trial_states(str(out))
    assert [state.status for state in states] == ["finished", "finished", "stopped", "stopped"]
    assert [state.message for state in states[2:]] == ["at 25 % by the scheduler"] * 2
    assert [state.num_images for state in states] == [64] * 4
    for state in states:
        assert Config.model_validate(state.config) == base(**state.overrides)
    assert (undisturbed / "outcome.json").stat().st_mtime_ns == ended
    assert not list(out.glob("trials/*/figures")), "a trial draws nothing"

    checkpoints = [newest_checkpoint(str(folder)) for folder in (undisturbed, killed)]
    assert all(checkpoints)
    expected, found = (leaves(load_checkpoint(str(checkpoint))) for checkpoint in checkpoints)
    assert expected.pop("config.data.images_per_class") == 16
    assert found.pop("config.data.images_per_class") is None
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        same = value.equal(found[key]) if hasattr(value, "equal") else value == found[key]
        assert same, key
    one, other = (state.evaluation for state in states[:2])
    assert one is not None
    assert other is not None
    assert one.collapse is not None
    assert (one.correspondence, one.collapse) == (other.correspondence, other.collapse)

    left = json.loads((tmp_path / "left.json").read_text())
    assert left["free"] == left["total"]
    assert left["groups"]
    assert set(left["groups"]) == {"REMOVED"}
    page = (out / "report.html").read_text().replace("<wbr>", "")
    assert all(state.name in page for state in states)
    assert (out / "results.csv").exists()


def test_trials_that_share_a_backbone_measure_it_untrained_once_and_keep_no_representations_of_their_own(
    cluster: None, textures: Path, tmp_path: Path, index_cache: None
) -> None:
    few, out = base(**{"seed": 77, "optim.epochs": 1, "data.images_per_class": 8}), tmp_path / "sweep"
    before = {entry.path for entry in entries()}

    def evaluations(*rates: float) -> list[Evaluation]:
        (tmp_path / "grid.yaml").write_text(f"optim.base_lr: {list(rates)}\n")
        sweep(
            few,
            str(tmp_path / "grid.yaml"),
            [str(textures)],
            str(out),
            options=SweepOptions(pairs=4, concurrent=2),
        )
        states = trial_states(str(out))
        assert [state.status for state in states] == ["finished"] * len(rates)
        return [state.evaluation for state in states if state.evaluation is not None]

    def new(start: str) -> list[Path]:
        return [e.path for e in entries() if e.path not in before and e.path.name.startswith(start)]

    one, other = evaluations(0.001, 0.002)
    assert one.model_digest != other.model_digest
    assert one.knn.untrained == other.knn.untrained
    assert one.correspondence.untrained == other.correspondence.untrained
    (store,) = new("features-")
    assert model_digest(untrained_encoder(few))[:8] in (store / "about.json").read_text()
    embedded = [image_id for line in json_lines(store / "journal.jsonl") for image_id, _ in line]
    assert sorted(embedded) == list(range(64)), "the untrained backbone embeds each image once"

    measured = new("untrained-")
    assert len(measured) == 2
    for path in measured:  # a third trial reads them
        content = json.loads(path.read_text())
        first = content["value"][0] if isinstance(content["value"], list) else content["value"]
        first |= {"top1": 0.125, "accuracy": 0.125}
        path.write_text(json.dumps(content))
    third = evaluations(0.001, 0.002, 0.003)[2]
    assert third.knn.untrained[0].top1 == third.correspondence.untrained.accuracy == 0.125
    assert new("features-") == [store]

    for path in measured:  # measured again, by the command that evaluates one model, it is the same
        path.unlink()
    run = next(str(path) for path in sorted(out.glob("trials/*0.001*")))
    again = evaluate(
        run, str(textures), EvaluateOptions(probes=("knn", "correspondence"), ks=(few.evaluation.k,), pairs=4)
    )
    assert (again.knn, again.correspondence) == (one.knn, one.correspondence)
    assert len(new("features-")) == 2, "what was evaluated by hand is kept for later probes"


@pytest.mark.slow
def test_optuna_searches_until_it_has_tried_as_many_as_asked_for(
    cluster: None, textures: Path, tmp_path: Path, index_cache: None
) -> None:
    (tmp_path / "grid.yaml").write_text("optim.base_lr: {loguniform: [0.001, 0.1]}\n")
    out = tmp_path / "sweep"
    few = base(**{"optim.epochs": 1, "data.images_per_class": 8})
    grid, data = str(tmp_path / "grid.yaml"), [str(textures)]
    for samples in (1, 2):  # the second call goes on with what the first one found
        sweep(few, grid, data, str(out), options=SweepOptions(search="optuna", samples=samples, pairs=4))
        states = trial_states(str(out))
        assert [state.status for state in states] == ["finished"] * samples
    for state in states:
        assert (state.num_images, state.steps, state.last("step")) == (32, 4, 4)
        assert state.evaluation is not None  # all images vote or are tested, also those that no trial trains on
        assert state.evaluation.knn.num_anchors + state.evaluation.knn.num_queries == 64
    rates = [state.overrides["optim.base_lr"] for state in states]
    assert 0.001 <= min(rates) < max(rates) <= 0.1
