"""What tests of several folders share."""

import importlib
import signal
from collections.abc import Iterator

import pytest

LIBRARIES = ("cv2", "matplotlib.figure", "pandas", "ray.data", "ray.train.torch", "ray.tune", "timm", "tensorboardX")


def pytest_collectstart() -> None:
    """Libraries come before the first module of ours: Python finds no compiled file of one that is imported by a module
    whose types are checked, and compiles it anew in every process."""
    for library in LIBRARIES:
        importlib.import_module(library)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C is heard, also where a shell has it ignored since it runs the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
