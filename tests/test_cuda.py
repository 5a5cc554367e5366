"""What only a GPU can show; skipped where there is none."""

import copy
from typing import Any

import pytest
import torch

from glsd.augment.photometric import photometric_device
from glsd.evaluation.knn import nearest
from glsd.training.batch import to_device
from glsd.training.loop import Metrics
from glsd.training.schedules import schedule
from glsd.training.state import TrainState, initial_state
from glsd.training.step import train_step
from ray_jobs.settings import JobSettings
from tests.glsd.evaluation.test_knn import random_features
from tests.glsd.training.small import small_config, train, units

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device; benchmarks/gpu.py runs these tests where there is one"
)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_run_on_the_gpu_in_float32_learns_what_one_on_the_cpu_learns(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    config = small_config(**{"optim.precision": "float32", "optim.base_lr": 0.005, "model.drop_path": 0.2})
    losses: dict[str, list[float]] = {"cpu": [], "cuda": []}
    for device in (CPU, CUDA):
        log = losses[device.type].append
        train(initial_state(config, device), units(config), config, 3, device, lambda m, _, log=log: log(m["loss"]))
    torch.testing.assert_close(losses["cuda"], losses["cpu"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("setting", "backbone", "drop_path"),
    [
        ("vanilla", "test_convnext", 0.2),
        ("similarity", "test_convnext", 0.2),
        ("geometric", "test_convnext", 0.2),
        ("geometric", "test_vit", 0.2),
        ("geometric", "test_resnet", 0.0),
        ("geometric", "swin_tiny_patch4_window7_224", 0.2),
    ],
)
def test_no_part_of_a_step_waits_for_the_device(setting, backbone, drop_path):
    whole = {"optim.precision": "bfloat16", "model.drop_path": drop_path, "optim.freeze_last_layer_epochs": 0}
    config = small_config(setting, backbone, **whole)
    state = initial_state(config, CUDA)
    arriving = list(units(config))

    def step(first: int) -> None:
        batches = [to_device(unit, config.augment, CUDA) for unit in arriving[first : first + 2]]
        train_step(state, batches, schedule(state.step, config, 3), config)

    step(0)  # constants and moments are made at the first
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_that_is_not_finite_changes_no_weight_or_centre_on_the_gpu():
    config = small_config()
    state = initial_state(config, CUDA)
    arriving = units(config)
    train_step(state, [to_device(next(arriving), config.augment, CUDA)], schedule(0, config, 3), config)
    before = copy.deepcopy(state.state_dict())
    batch = to_device(next(arriving), config.augment, CUDA)
    batch.crops[0][0, 0, 0, 0, 0] = torch.inf
    assert not train_step(state, [batch], schedule(1, config, 3), config).applied
    for name in ("student", "teacher", "centers"):
        for key, value in state.state_dict()[name].items():
            assert torch.equal(value, before[name][key]), key


def test_a_resumed_run_on_the_gpu_goes_on_as_it_would_have(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    config = small_config(**{"optim.precision": "float32", "optim.base_lr": 0.005})
    checkpoints: list[dict[str, Any]] = []

    def keep(_: Metrics, state: TrainState | None) -> None:
        if state is not None:
            checkpoints.append(copy.deepcopy(state.state_dict()))

    train(initial_state(config, CUDA), units(config), config, 3, CUDA, keep)
    resumed = initial_state(config, CUDA)
    resumed.load_state_dict(checkpoints[0])
    assert resumed.step == 3
    train(resumed, units(config, first_step=3), config, 3, CUDA, lambda metrics, state: None)
    for name, value in checkpoints[1]["student"].items():
        torch.testing.assert_close(resumed.student.state_dict()[name], value, rtol=1e-3, atol=1e-3, msg=name)


def test_what_the_driver_computes_is_on_the_gpu_unless_the_job_is_not():
    assert (JobSettings().device, JobSettings(gpu=False).device) == ("cuda", "cpu")


def test_photometrics_of_the_gpu_are_those_of_the_cpu():
    config = small_config()
    unit = next(units(config))
    crops = torch.from_numpy(unit["crops_0"]).flatten(0, 1)
    pho = torch.from_numpy(unit["pho"][:, :2]).flatten(0, 1)
    there = photometric_device(crops.to(CUDA), pho.to(CUDA), config.augment)
    torch.testing.assert_close(there.cpu(), photometric_device(crops, pho, config.augment), rtol=1e-4, atol=1e-3)


def test_queries_on_the_gpu_have_the_neighbours_that_they_have_on_the_cpu() -> None:
    anchors, queries = random_features(20_000, 48, 0), random_features(600, 48, 1)
    expected, found = nearest(anchors, queries, 20), nearest(anchors, queries.cuda(), 20)
    assert float((found.anchor_index.cpu() == expected.anchor_index).double().mean()) > 0.999  # but for near ties
    torch.testing.assert_close(found.similarity.cpu(), expected.similarity, atol=1e-6, rtol=0)
