"""A pretraining whose object store does not always answer as it should."""

import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch

from glsd.runs.checkpoints import load_checkpoint
from ray_jobs.pretraining.job import Run, pretrain
from ray_jobs.pretraining.options import PretrainOptions
from tests.glsd.storage.object_store import Fault, Faults, object_store
from tests.ray_jobs.runs import leaves, small_run


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_on_an_object_store_whose_answers_go_wrong_ends_with_the_weights_of_one_on_a_disk(
    uninterrupted: Run, forty: Path, tmp_path: Path
) -> None:
    shutil.copytree(forty, tmp_path / "bucket/photos")
    faults = Faults(0.05)
    with object_store(tmp_path, faults=faults) as address:
        options = f"?endpoint_override={address}&scheme=http"
        run = pretrain(
            small_run(), f"s3://bucket/photos{options}", f"s3://bucket/run{options}", PretrainOptions(figures=False)
        )
        assert faults.injected.keys() == set(get_args(Fault))
        state, expected = leaves(load_checkpoint(run.checkpoint)), leaves(load_checkpoint(uninterrupted.checkpoint))
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value) if isinstance(value, torch.Tensor) else state[name] == value, name
