"""A run whose teacher collapses stops, says why, and keeps its last checkpoint; or it warns and continues."""

import re
from pathlib import Path

import pytest

from glsd.config import Config
from glsd.evaluation.verdict import Collapsed
from ray_jobs.pretraining.job import pretrain
from ray_jobs.pretraining.options import PretrainOptions
from ray_jobs.settings import JobSettings
from tests.glsd.evaluation.collapsing import CENTERING_OFF, textures_config
from tests.images import labelled_folder
from tests.ray_jobs.runs import complete_checkpoints, json_lines

pytestmark = [pytest.mark.ray, pytest.mark.slow]

LOG_EVERY = 2


def collapsing_run(**overrides: object) -> Config:
    """Without centring the teacher chooses one prototype for all images within ten epochs."""
    return textures_config(
        **CENTERING_OFF,
        **{
            "data.unit_size": 8,
            "log_every_steps": LOG_EVERY,
            "evaluation.resize": 64,
            "evaluation.crop": 64,
            **overrides,
        },
    )


@pytest.fixture(scope="module")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_folder(tmp_path_factory.mktemp("textures") / "photos", num_images=64)


def test_both_workers_of_a_collapsed_run_stop_with_the_reason_and_so_they_do_when_it_is_started_again(
    cluster: None, textures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Collapsed) as caught:
        pretrain(collapsing_run(collapse="stop"), str(textures), str(out), job=JobSettings(workers=2))
    lines = json_lines(out / "metrics.jsonl")
    stopped = int(lines[-1]["step"])
    found = re.search(r"collapsed at step (\d+) \(information_global [\d.e-]+ is below", str(caught.value))
    assert found is not None
    assert int(found[1]) == stopped < 40
    assert [line["collapsed"] for line in lines if "collapsed" in line].count(1.0) == 1
    kept = complete_checkpoints(out)
    assert f"The checkpoint of step {kept[-1]} is kept" in str(caught.value)
    assert stopped - 4 < kept[-1] <= stopped
    assert not (out / "summary.json").exists()
    with pytest.raises(Collapsed, match=f"collapsed at step {max(stopped, kept[-1] + LOG_EVERY)} "):
        pretrain(collapsing_run(collapse="stop"), str(textures), str(out), job=JobSettings(workers=2))


def test_a_collapsed_run_that_should_only_warn_goes_on_and_warns_once(
    cluster: None, textures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    pretrain(collapsing_run(collapse="warn"), str(textures), str(out), PretrainOptions(figures=False))
    assert json_lines(out / "metrics.jsonl")[-1]["collapsed"] == 1.0
    said = capfd.readouterr().err
    assert said.count("the teacher collapsed at step") == 1
    assert "COLLAPSED" in said
