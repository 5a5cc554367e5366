"""Small runs that a test can train: one that stays healthy, and some whose teacher collapses."""

from collections.abc import Iterator

import numpy as np
import torch

from glsd.augment.multicrop import multicrop_batch
from glsd.config import Config
from glsd.evaluation.collapse import collapse_metrics
from glsd.training.batch import Batch, Unit
from glsd.training.loop import Metrics
from glsd.training.state import TrainState, initial_state
from tests.glsd.training.small import train
from tests.images import CLASSES, picture

CPU = torch.device("cpu")
CENTERING_OFF = {"objective.center_momentum": 1.0}
STEPS_PER_EPOCH = 4


def textures_config(backbone: str = "test_resnet", setting: str = "geometric", **overrides: object) -> Config:
    """Ten epochs of four steps of sixteen images, 64 and 32 px crops, weakly augmented."""
    return Config().with_overrides(
        {
            "objective.setting": setting,
            "objective.teacher_temperature": 0.03,
            "objective.warmup_teacher_temperature": 0.03,
            "objective.teacher_temperature_warmup_epochs": 0,
            "model.backbone": backbone,
            "model.drop_path": 0.0,
            "model.hidden_dim": 128,
            "model.bottleneck_dim": 64,
            "model.num_prototypes": 256,
            "augment.global_size": 64,
            "augment.global_scale": (0.5, 1.0),
            "augment.local_sizes": (32,),
            "augment.num_local_crops": (2,),
            "augment.local_scale": (0.2, 0.5),
            "augment.brightness": 0.2,
            "augment.contrast": 0.2,
            "augment.blur_probability": (0.1, 0.1, 0.1),
            "augment.solarize_probability": (0.0, 0.0, 0.0),
            "optim.batch_size": 16,
            "optim.epochs": 10,
            "optim.warmup_epochs": 2,
            "optim.base_lr": 0.03,
            "optim.teacher_momentum": 0.98,
            "data.unit_size": 16,
            "log_every_steps": STEPS_PER_EPOCH,
            **overrides,
        }
    )


def pictures(num_images: int) -> list[np.ndarray]:
    return [picture(CLASSES[number % len(CLASSES)], number) for number in range(num_images)]


def texture_units(config: Config) -> Iterator[Unit]:
    """The same crops in every epoch: making new ones would take longer than the training."""
    num_images = config.optim.batch_size
    crops = []
    for step in range(STEPS_PER_EPOCH):
        ids = np.arange(step * num_images, (step + 1) * num_images)
        images = [picture(CLASSES[i % len(CLASSES)], int(i)) for i in ids]
        crops.append(multicrop_batch(images, config.augment, 0, 0, ids, "worker") | {"image_id": ids})
    for step in range(config.optim.epochs * STEPS_PER_EPOCH):
        yield {"unit": np.full(num_images, step), **crops[step % STEPS_PER_EPOCH]}


def trained(config: Config) -> tuple[TrainState, list[Metrics]]:
    """The state after all epochs, and its metrics after each."""
    state, logged = initial_state(config, CPU), []

    def diagnose(state: TrainState, batch: Batch) -> dict[str, torch.Tensor]:
        temperature = config.objective.teacher_temperature
        return collapse_metrics(state.teacher, batch, state.centers, config, temperature)

    train(state, texture_units(config), config, STEPS_PER_EPOCH, CPU, lambda m, s: logged.append(m), None, diagnose)
    return state, logged
