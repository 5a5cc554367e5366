"""Algorithm 1 as a program: batches, schedules, optimiser, state, step, loop and checkpoints."""

from glsd.training.batch import Batch, Unit, to_device
from glsd.training.checkpoint import (
    checkpoints,
    load_checkpoint,
    manifest,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from glsd.training.loop import Metrics, NonFiniteLoss, Probe, train
from glsd.training.optimizer import build_optimizer, clip_each, gated_step, set_hyperparameters
from glsd.training.schedules import learning_rate, teacher_momentum, teacher_temperature, weight_decay
from glsd.training.state import TrainState, initial_state
from glsd.training.step import StepReport, autocast, train_step

__all__ = [
    "Batch",
    "Metrics",
    "NonFiniteLoss",
    "Probe",
    "StepReport",
    "TrainState",
    "Unit",
    "autocast",
    "build_optimizer",
    "checkpoints",
    "clip_each",
    "gated_step",
    "initial_state",
    "learning_rate",
    "load_checkpoint",
    "manifest",
    "newest_checkpoint",
    "prune_checkpoints",
    "save_checkpoint",
    "set_hyperparameters",
    "teacher_momentum",
    "teacher_temperature",
    "to_device",
    "train",
    "train_step",
    "weight_decay",
]
