"""Schedules (Sec. 4.2) as functions of the step; steps and epochs count from 0.

They follow the authors' code to the last step: the warm-up reaches its peak on its own last step, and a cosine divides
by the number of its steps, so that its end value is approached and not reached.
"""

import math
from typing import NamedTuple

from glsd.config import Config, ObjectiveConfig, OptimConfig


class Schedule(NamedTuple):
    """What the schedules say of one step."""

    lr: float
    weight_decay: float
    teacher_momentum: float
    """Lambda of Algorithm 1, line 18."""
    teacher_temperature: float
    last_layer_is_frozen: bool
    epoch: float
    """Epochs done when the step is."""


def schedule(step: int, config: Config, steps_per_epoch: int) -> Schedule:
    """The schedules of a run of N // B = `steps_per_epoch` steps per epoch, at a step."""
    optim, epoch = config.optim, step // steps_per_epoch
    return Schedule(
        learning_rate(step, optim, steps_per_epoch),
        weight_decay(step, optim, steps_per_epoch),
        teacher_momentum(step, optim, steps_per_epoch),
        teacher_temperature(epoch, config.objective),
        epoch < optim.freeze_last_layer_epochs,
        (step + 1) / steps_per_epoch,
    )


def learning_rate(step: int, optim: OptimConfig, steps_per_epoch: int) -> float:
    """Linear from exactly 0 over the warm-up epochs to base_lr * B / 256, then a cosine to min_lr."""
    peak = optim.base_lr * optim.batch_size / 256
    warmup_steps = optim.warmup_epochs * steps_per_epoch
    if step < warmup_steps:
        return peak * step / max(1, warmup_steps - 1)
    return _cosine(peak, optim.min_lr, step - warmup_steps, optim.epochs * steps_per_epoch - warmup_steps)


def weight_decay(step: int, optim: OptimConfig, steps_per_epoch: int) -> float:
    """A cosine over the whole run, without warm-up."""
    return _cosine(optim.weight_decay, optim.weight_decay_end, step, optim.epochs * steps_per_epoch)


def teacher_momentum(step: int, optim: OptimConfig, steps_per_epoch: int) -> float:
    """Lambda of Algorithm 1, line 18: a cosine to 1 over the whole run."""
    return _cosine(optim.teacher_momentum, 1.0, step, optim.epochs * steps_per_epoch)


def teacher_temperature(epoch: int, objective: ObjectiveConfig) -> float:
    """Linear over the warm-up epochs, constant after; it changes at an epoch's border."""
    start, end = objective.warmup_teacher_temperature, objective.teacher_temperature
    warmup_epochs = objective.teacher_temperature_warmup_epochs
    if epoch >= warmup_epochs:
        return end
    return start + (end - start) * epoch / max(1, warmup_epochs - 1)


def _cosine(start: float, end: float, step: int, num_steps: int) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * step / num_steps)) / 2
