"""The options of `glsd sweep`, for Python and for the command line."""

from dataclasses import dataclass
from typing import Literal

Scheduler = Literal["fifo", "asha", "median"]


@dataclass(frozen=True)
class SweepOptions:
    """Which trials there are, which of them run when, and how they are measured."""

    grid: tuple[str, ...] = ()
    """Axes that replace or extend the study's, such as optim.base_lr=1e-4,5e-4; a single value is for all trials; with
    together=[KEY,KEY] the values of two axes go together."""
    seeds: tuple[int, ...] = ()
    """Values of seed; by default only that of the base."""
    samples: int = 1
    """Draws where the grid has distributions; with --search optuna the number of trials."""
    scheduler: Scheduler = "fifo"
    """asha and median stop trials early whose online k-NN is low."""
    search: Literal["random", "optuna"] = "random"
    """How to draw from distributions: at random, or with optuna (an extra), which learns from earlier trials."""
    stop_collapsed: bool = False
    """End a trial whose teacher has collapsed; it is marked so, and evaluated as it is."""
    retries: int = 1
    """How often a trial that fails is started again."""
    concurrent: int | None = None
    """Trials at a time; by default, and at most, as many as the cluster has room for."""
    pairs: int = 1000
    """Images of each trial's correspondence."""
    test: tuple[str, ...] = ()
    """Labelled images that are tested; without them a share of the labelled data is."""
    dry_run: bool = False
    """Only check and plan; of Optuna's trials, those that are known and the next one."""
