"""One local cluster for all tests that need Ray: starting it anew would cost every test half a minute."""

import os
from collections.abc import Iterator

os.environ |= {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}

import pytest
import ray

OBJECT_STORE_BYTES = 512 * 2**20
RAYS_OWN_WARNINGS = (
    # DataContext sets its own deprecated fields when it is made.
    "ignore::DeprecationWarning:ray.data.context",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings are errors, but for those that Ray raises about itself."""
    for item in items:
        if item.get_closest_marker("ray"):
            for warning in RAYS_OWN_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Four logical CPUs on this machine; the streams need one beside the training workers."""
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=OBJECT_STORE_BYTES,
    )
    yield
    ray.shutdown()
