"""Early stopping: which trials of a sweep are worth going on with, by their online k-NN.

Trials of different lengths are compared at the same share of their epochs: `progress`, in per cent.
"""

from typing import Literal

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

Scheduler = Literal["fifo", "asha", "median"]


def scheduler_of(name: Scheduler) -> TrialScheduler:
    """Tune's scheduler of that name; no trial is stopped before a quarter of its epochs."""
    if name == "asha":
        return AsyncHyperBandScheduler(
            time_attr="progress", metric="knn", mode="max", grace_period=25, reduction_factor=2, max_t=101
        )
    if name == "median":
        return MedianStoppingRule(time_attr="progress", metric="knn", mode="max", grace_period=25)
    return FIFOScheduler()
