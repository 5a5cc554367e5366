"""What tests of several folders share."""

import gc
import importlib
import os
import signal
from collections.abc import Iterator

import pytest

os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"  # read when Ray Data is imported
LIBRARIES = ("cv2", "matplotlib.figure", "pandas", "ray.data", "ray.train.torch", "ray.tune", "timm", "tensorboardX")


def pytest_collectstart() -> None:
    """Libraries come before the modules whose types are checked: Python finds no compiled file of what such a module
    imports first, and compiles it anew. A hook, because the process that hands out the tests needs none of them.
    """
    for library in LIBRARIES:
        importlib.import_module(library)


def pytest_collection_finish() -> None:
    """What is imported stays. The garbage collector took 5 % of the tests' time to look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def index_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Indexes of the tests' images do not go into the user's cache."""
    os.environ["GLSD_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C is heard, also where a shell has it ignored since it runs the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
