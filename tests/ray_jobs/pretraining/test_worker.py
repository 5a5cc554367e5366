"""What a training worker saves and measures, in Ray Train's local mode: a worker in this process, without a cluster."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from glsd.data.index import build_index
from glsd.data.units import UnitSource, made_in_turn
from glsd.evaluation.collapse import collapse_metrics
from glsd.runs.checkpoints import checkpoints
from glsd.runs.directory import RunDirectory
from glsd.runs.lease import LeaseTimes, read_holder
from glsd.runs.records import LEASE, Failure, RunData, write_record
from glsd.training.batch import to_device
from glsd.training.loop import Metrics, NonFiniteLoss, steps
from glsd.training.state import TrainState, initial_state
from ray_jobs.pretraining.initial_weights import read_initial_weights
from ray_jobs.pretraining.recorder import Plan, Recorder
from ray_jobs.pretraining.worker import CollapseAlarm, train_worker
from ray_jobs.workers.making import MAKING, Making
from tests.glsd.training.small import small_config
from tests.images import labelled_folder

CPU = torch.device("cpu")
STEPS_PER_EPOCH = 3
TEMPERATURES = (0.03, 0.3)
"""Of the teacher in the first and in the second epoch."""


@pytest.fixture
def plan(tmp_path: Path) -> Iterator[Plan]:
    """Two epochs of three steps with a checkpoint after each step, whose run is leased."""
    overrides = {
        "objective.warmup_teacher_temperature": TEMPERATURES[0],
        "objective.teacher_temperature": TEMPERATURES[1],
        "objective.teacher_temperature_warmup_epochs": 1,
        "checkpoint_every_steps": 1,
    }
    config = small_config(**overrides)
    index = build_index(labelled_folder(tmp_path / "photos", 12), config.data)
    source = UnitSource(config, index, None, "device")
    run = RunDirectory(tmp_path / "run")
    with run.lease(times=LeaseTimes(heartbeat_s=60, settle_s=0.05)) as token:
        yield Plan(config, run, token, source, {}, None, None, None)


def train_in_this_process(plan: Plan, on_logged: Callable[[Metrics, TrainState], None]) -> None:
    """A worker's training, with someone who is told of each step when it has been logged and saved."""

    def work() -> None:
        with Recorder(plan, 0) as recorder:
            alarm = CollapseAlarm(plan, recorder, 0)
            made = made_in_turn(plan.source, range(plan.source.num_units))
            told = Making(time.time(), time.time(), os.getpid(), 0, 0, 0)
            units = recorder.watched({**unit, MAKING: told.column(len(unit["unit"]))} for unit in made)
            state = initial_state(plan.config, CPU)
            for reading in steps(state, units, plan.config, plan.steps_per_epoch, CPU):
                metrics = reading.metrics | alarm.measures(state, reading)
                recorder.log(metrics, state, save=True)
                on_logged(metrics, state)

    TorchTrainer(work, scaling_config=ScalingConfig(num_workers=0)).fit()


def test_a_worker_that_does_not_reach_the_drivers_run_directory_trains_nothing(plan: Plan, tmp_path: Path) -> None:
    elsewhere = dataclasses.replace(plan, run=RunDirectory(tmp_path / "another disk"))
    with pytest.raises(ValueError, match=r"does not find .*another disk/lease\.json.*; name an --out that all nodes"):
        train_worker(elsewhere, iter(()))
    assert not (tmp_path / "another disk").exists()


def test_a_worker_of_a_start_that_lost_the_run_trains_nothing(plan: Plan) -> None:
    with pytest.raises(ValueError, match=r"process \d+ on host .* has taken .* over; this start ends"):
        train_worker(dataclasses.replace(plan, token="of an earlier start"), iter(()))
    assert list(plan.run.sizes()) == [LEASE]


def test_a_worker_that_is_started_again_meets_the_error_that_its_start_has_noted(plan: Plan) -> None:
    write_record(plan.run, Failure(token=plan.token, kind="NonFiniteLoss", message="the loss is nan at step 3"))
    with pytest.raises(NonFiniteLoss, match="the loss is nan at step 3"):
        train_worker(plan, iter(()))


def test_a_run_whose_initial_backbone_is_gone_does_not_start_from_random_weights(plan: Plan) -> None:
    write_record(plan.run, RunData(sources=["photos"], images=8, digest="0123abcd", init_from="a model"))
    with pytest.raises(ValueError, match=r"run/init\.safetensors, the backbone that the run starts from, is gone"):
        read_initial_weights(plan.run)


def test_a_worker_whose_lease_was_taken_over_saves_no_checkpoint(plan: Plan) -> None:
    run = plan.run

    def take_over(metrics: Metrics, state: TrainState) -> None:
        holder = read_holder(run)
        assert holder is not None
        write_record(run, holder.model_copy(update={"token": "of another start"}))

    with pytest.raises(
        RuntimeError, match=r"another start has taken .* over; the checkpoint of step 2 is not published"
    ):
        train_in_this_process(plan, take_over)
    assert list(checkpoints(run.location)) == [1]


def test_the_alarm_measures_at_the_temperature_of_the_step_just_made(plan: Plan) -> None:
    measured = list[int]()

    def measure_again(metrics: Metrics, state: TrainState) -> None:
        last = to_device(plan.source.made(plan.source.read(2 * state.step - 1)), plan.config.augment, CPU)
        temperature = TEMPERATURES[(state.step - 1) // STEPS_PER_EPOCH]
        for name, value in collapse_metrics(state.teacher, last, state.centers, plan.config, temperature).items():
            assert metrics[name] == pytest.approx(value.item(), rel=1e-5), f"{name} of step {state.step}"
        measured.append(state.step)

    train_in_this_process(plan, measure_again)
    assert measured == [1, 2, 3, 4, 5, 6]
