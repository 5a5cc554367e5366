"""A configuration and units small enough to train on in a test."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch

from glsd.augment.multicrop import multicrop_batch
from glsd.config import Config
from glsd.data.order import Order
from glsd.models.student_teacher import Network
from glsd.training.batch import Batch, Unit
from glsd.training.loop import Metrics, steps
from glsd.training.state import TrainState
from glsd.training.step import mean_metrics

NUM_IMAGES = 13


def small_config(setting: str = "geometric", backbone: str = "test_convnext", **overrides: object) -> Config:
    """Two epochs of three steps of two units of two images, 64 and 32 px crops."""
    return Config().with_overrides(
        {
            "objective.setting": setting,
            "model.backbone": backbone,
            "model.drop_path": 0.0,
            "model.hidden_dim": 32,
            "model.bottleneck_dim": 16,
            "model.num_prototypes": 24,
            "augment.global_size": 64,
            "augment.local_sizes": (32,),
            "augment.num_local_crops": (2,),
            "optim.batch_size": 4,
            "optim.epochs": 2,
            "optim.warmup_epochs": 0,
            "optim.base_lr": 0.05,
            "optim.teacher_momentum": 0.9,
            "data.unit_size": 2,
            "log_every_steps": 1,
            **overrides,
        }
    )


def small_order(config: Config) -> Order:
    return Order(config.seed, NUM_IMAGES, config.optim.batch_size, config.data.unit_size)


def units(config: Config, first_step: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Unit]:
    """This worker's units from a step on, made as the stream makes them, of noise images of several shapes."""
    images = [np.random.default_rng(n).integers(0, 256, (70 + n, 90 - n, 3), np.uint8) for n in range(NUM_IMAGES)]
    order = small_order(config)
    end = config.optim.epochs * order.units_per_epoch
    for k in range(first_step * order.units_per_step + rank, end, world_size):
        epoch, ids = order.unit(k)
        crops = multicrop_batch([images[i] for i in ids], config.augment, config.seed, epoch, ids, "device")
        yield {"unit": np.full(len(ids), k), "image_id": ids, **crops}


def train(
    state: TrainState,
    arriving: Iterator[Unit],
    config: Config,
    steps_per_epoch: int,
    device: torch.device,
    on_log: Callable[[Metrics, TrainState | None], None],
    probes: Mapping[str, Callable[[Network, int], Metrics]] | None = None,
    diagnose: Callable[[TrainState, Batch], Mapping[str, torch.Tensor]] | None = None,
) -> None:
    """Train to the end as a worker does, with what it does at a reading given by the test."""
    for reading in steps(state, arriving, config, steps_per_epoch, device):
        metrics = reading.metrics
        if diagnose is not None:
            metrics |= mean_metrics(diagnose(state, reading.last_unit()))
        for probe in (probes or {}).values() if reading.probe_is_due else ():
            metrics |= probe(state.teacher, state.step)
        on_log(metrics, state if reading.checkpoint_is_due else None)
