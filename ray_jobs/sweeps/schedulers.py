"""Early stopping: which trials of a sweep continue, by their online k-NN.

Trials of different lengths are compared at the same share of their epochs: `progress`, in per cent.
"""

import math
from typing import Any, Final

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from glsd.config import Config
from ray_jobs.sweeps.options import Scheduler

_TIME, _METRIC = "progress", "knn"
_GRACE: Final = 25
"""No trial is stopped before this share of its epochs."""


def scheduler_of(name: Scheduler) -> TrialScheduler:
    """Tune's scheduler of that name."""
    if name == "asha":
        return AsyncHyperBandScheduler(
            time_attr=_TIME, metric=_METRIC, mode="max", grace_period=_GRACE, reduction_factor=2, max_t=101
        )
    return _Median() if name == "median" else FIFOScheduler()


def check_scheduler(name: Scheduler, config: Config) -> None:
    """Refuse a trial that the scheduler would never judge.

    Raises:
        ValueError: it has no k-NN between the grace and its end; the message says how often there must be one.
    """
    every, epochs = config.evaluation.knn_every_epochs, config.optim.epochs
    first = math.ceil(_GRACE / 100 * epochs)
    if name != "fifo" and (every == 0 or not any(epoch % every == 0 for epoch in range(first, epochs))):
        raise ValueError(
            f"--scheduler {name} needs an online k-NN between {_GRACE} % of a trial's epochs and its end; with "
            f"evaluation.knn_every_epochs {every} there is none in {epochs} epochs; set it to "
            f"{max(1, epochs // 4)} or less"
        )


class _Median(MedianStoppingRule):
    """Tune's rule, for trials that may end without a result and are never paused."""

    def __init__(self) -> None:
        never: Any = math.inf  # which Tune's own annotation, of whole numbers, does not know
        super().__init__(time_attr=_TIME, metric=_METRIC, mode="max", grace_period=_GRACE, min_time_slice=never)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, float]) -> None:
        """A trial that ended without a k-NN says nothing about the others."""
        if _TIME in result and _METRIC in result:
            super().on_trial_complete(tune_controller, trial, result)
