"""What tests of training share."""

from collections.abc import Iterator

import pytest
import torch
from torch.utils import deterministic

from glsd.training.determinism import same_sums


@pytest.fixture
def several_threads() -> Iterator[None]:
    """Threads that race for a sum give other bits each time, unless the process asks for the same, as a worker does."""
    threads, mode, filled = (
        torch.get_num_threads(),
        torch.get_deterministic_debug_mode(),
        deterministic.fill_uninitialized_memory,
    )
    torch.set_num_threads(2)
    same_sums()
    yield
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(mode)
    deterministic.fill_uninitialized_memory = filled
