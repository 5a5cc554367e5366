"""A sweep ends in the same table however often it is killed, and leaves nothing reserved behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from glsd.config import Config
from glsd.training import load_checkpoint, newest_checkpoint
from ray_jobs.pretraining import pretrain
from ray_jobs.trial_states import trial_states
from tests.ray.images import labelled_folder
from tests.ray.runs import json_lines, leaves
from tests.ray.test_kill import Start

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


def test_a_killed_sweep_keeps_what_ended_and_goes_on_with_the_rest(
    cluster: None, textures: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "base.yaml").write_text(base().to_yaml())
    out = tmp_path / "sweep"
    command = [
        sys.executable,
        "-m",
        "ray_jobs.cli",
        "sweep",
        "matching_by_regime",
        "--base",
        str(tmp_path / "base.yaml"),
    ]
    command += ["--data", str(textures), "--out", str(out), "--pairs", "8"]
    command += ["--grid", "objective.setting=vanilla,geometric", "data.images_per_class=8,null"]

    def start(number: int) -> Start:
        log = tmp_path / f"{number}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, stdout=stream, stderr=stream, env=environment, start_new_session=True, cwd=tmp_path
            )
        return Start(process, log)

    first, second = (f"setting_vanilla-images_per_class_{n}-seed_0" for n in (8, "none"))
    started = start(0)
    started.wait_until(lambda: len(json_lines(out / "trials" / second / "metrics.jsonl")) > 4)
    started.kill_all()
    ended = (out / "trials" / first / "outcome.json").stat().st_mtime_ns
    again = start(1)
    assert again.process.wait(timeout=600) == 0, again.said

    states = trial_states(str(out))
    assert [state.status for state in states] == ["finished"] * 4
    assert [state.num_images for state in states] == [32, 64, 32, 64]
    assert (out / "trials" / first / "outcome.json").stat().st_mtime_ns == ended
    assert {state.evaluation["collapse"]["verdict"] for state in states if state.evaluation} <= {"healthy", "collapsed"}
    for state in states:
        assert state.evaluation is not None
        assert state.evaluation["knn"]["num_anchors"] + state.evaluation["knn"]["num_queries"] == 64

    undisturbed = pretrain(base(**{"objective.setting": "vanilla"}), str(textures), str(tmp_path / "undisturbed"))
    killed = newest_checkpoint(str(out / "trials" / second))
    assert killed is not None
    expected, found = (leaves(load_checkpoint(checkpoint)) for checkpoint in (undisturbed.checkpoint, killed))
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        same = value.equal(found[key]) if hasattr(value, "equal") else value == found[key]
        assert same, key

    page = (out / "report.html").read_text().replace("<wbr>", "")
    assert all(state.name in page for state in states)
    assert (out / "results.csv").exists()
