"""Algorithm 1 as a program: batches, schedules, optimiser, state, step, loop and checkpoints.

A name is imported when it is first used: who lists the checkpoints of a run needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glsd.training.batch import Batch as Batch
    from glsd.training.batch import Unit as Unit
    from glsd.training.batch import to_device as to_device
    from glsd.training.checkpoint import checkpoints as checkpoints
    from glsd.training.checkpoint import load_checkpoint as load_checkpoint
    from glsd.training.checkpoint import manifest as manifest
    from glsd.training.checkpoint import newest_checkpoint as newest_checkpoint
    from glsd.training.checkpoint import prune_checkpoints as prune_checkpoints
    from glsd.training.checkpoint import save_checkpoint as save_checkpoint
    from glsd.training.loop import Metrics as Metrics
    from glsd.training.loop import NonFiniteLoss as NonFiniteLoss
    from glsd.training.loop import Reading as Reading
    from glsd.training.loop import steps as steps
    from glsd.training.optimizer import build_optimizer as build_optimizer
    from glsd.training.optimizer import clip_each as clip_each
    from glsd.training.optimizer import gated_step as gated_step
    from glsd.training.optimizer import set_hyperparameters as set_hyperparameters
    from glsd.training.schedules import Schedule as Schedule
    from glsd.training.schedules import learning_rate as learning_rate
    from glsd.training.schedules import schedule as schedule
    from glsd.training.schedules import teacher_momentum as teacher_momentum
    from glsd.training.schedules import teacher_temperature as teacher_temperature
    from glsd.training.schedules import weight_decay as weight_decay
    from glsd.training.state import TrainState as TrainState
    from glsd.training.state import initial_state as initial_state
    from glsd.training.step import StepReport as StepReport
    from glsd.training.step import autocast as autocast
    from glsd.training.step import mean_metrics as mean_metrics
    from glsd.training.step import train_step as train_step
    from glsd.training.step import unit_losses as unit_losses

_MODULES = {
    "Batch": "batch",
    "Metrics": "loop",
    "NonFiniteLoss": "loop",
    "StepReport": "step",
    "TrainState": "state",
    "Unit": "batch",
    "autocast": "step",
    "build_optimizer": "optimizer",
    "checkpoints": "checkpoint",
    "clip_each": "optimizer",
    "gated_step": "optimizer",
    "initial_state": "state",
    "learning_rate": "schedules",
    "load_checkpoint": "checkpoint",
    "manifest": "checkpoint",
    "newest_checkpoint": "checkpoint",
    "prune_checkpoints": "checkpoint",
    "save_checkpoint": "checkpoint",
    "set_hyperparameters": "optimizer",
    "teacher_momentum": "schedules",
    "teacher_temperature": "schedules",
    "to_device": "batch",
    "Reading": "loop",
    "steps": "loop",
    "Schedule": "schedules",
    "schedule": "schedules",
    "mean_metrics": "step",
    "train_step": "step",
    "unit_losses": "step",
    "weight_decay": "schedules",
}

__all__ = [
    "Batch",
    "Metrics",
    "NonFiniteLoss",
    "Reading",
    "Schedule",
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
    "mean_metrics",
    "newest_checkpoint",
    "prune_checkpoints",
    "save_checkpoint",
    "schedule",
    "set_hyperparameters",
    "steps",
    "teacher_momentum",
    "teacher_temperature",
    "to_device",
    "train_step",
    "unit_losses",
    "weight_decay",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"glsd.training.{_MODULES[name]}"), name)
