"""What tests of training share."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def several_threads() -> Iterator[None]:
    """Threads that race for a sum may give other bits each time."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
