"""The same bits each time on a CPU, which is a choice for a whole process."""

import torch
from torch.utils import deterministic


def same_sums() -> None:
    """Make gradients on a CPU the same bits each time, on any fixed number of threads, for the rest of the process.

    Otherwise threads add up the gradient of a large indexed tensor, such as Swin's table of relative positions with
    windows of 14, in the order in which they come. An operation that has no fixed order warns. A process calls this
    once, before it trains; the package glsd never does, its Ray workers do. Where deterministic operations are already
    on, nothing changes.
    """
    if not torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(True, warn_only=True)
        deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # torch's stub lacks its property
