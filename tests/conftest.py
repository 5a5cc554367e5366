"""What tests of several rooms share."""

import gc
import importlib
import os
import signal
from collections.abc import Iterator

import pytest

os.environ |= {  # read when Ray is imported and started
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "60000",  # what has imported models serves the next test too
    "RAY_enable_worker_prestart": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
}
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
