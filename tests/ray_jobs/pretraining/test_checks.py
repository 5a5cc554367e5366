"""What the pretrain job says before it starts."""

from pathlib import Path

import pytest

from glsd.config import Config
from glsd.data.index import build_index
from glsd.data.regimes import regime, write_subset
from glsd.runs.directory import RunDirectory
from ray_jobs.pretraining.checks import batch_norm_note
from ray_jobs.pretraining.job import SUBSET, pretrain
from ray_jobs.pretraining.options import PretrainOptions
from tests.glsd.data.encoding import write_jpegs
from tests.ray_jobs.runs import small_run


def test_a_run_whose_regime_would_have_other_images_now_is_refused(tmp_path: Path) -> None:
    photos, config = tmp_path / "photos", small_run(**{"data.fraction": 0.5})
    write_jpegs(photos, *(f"{number:02d}.jpg" for number in range(48)))
    index, run = build_index(photos, config.data), RunDirectory(tmp_path / "run")
    run.claim(config, run.identity(index, None))
    write_subset(tmp_path / "run" / SUBSET, index, regime(index, config.data) // 2)
    with pytest.raises(ValueError, match=r"run was begun with other images of these data, listed in its subset\.csv"):
        pretrain(config, str(photos), str(tmp_path / "run"))


def test_credentials_in_the_name_of_initial_weights_are_refused(tmp_path: Path) -> None:
    init = PretrainOptions(init_from="s3://AKIA:hidden@bucket/runs/mine")
    with pytest.raises(ValueError, match="AWS_ACCESS_KEY_ID") as refusal:
        pretrain(Config(), str(tmp_path / "photos"), str(tmp_path / "run"), init)
    assert "hidden" not in str(refusal.value)


def test_batch_norm_that_no_one_synchronises_is_told_of() -> None:
    resnet, convnext = (
        Config().with_overrides({"model.backbone": name, "model.drop_path": 0.0})
        for name in ("test_resnet", "test_convnext")
    )
    assert "each of the 2 workers normalises by its own units of 32 images" in (
        batch_norm_note(resnet, 2, gpu=False) or ""
    )
    for silent in (
        batch_norm_note(resnet, 1, gpu=False),
        batch_norm_note(resnet, 2, gpu=True),
        batch_norm_note(convnext, 2, gpu=False),
    ):
        assert silent is None
