"""One local cluster for all tests that need Ray: starting it anew would cost every test half a minute."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ |= {
    "OMP_WAIT_POLICY": "PASSIVE",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "60000",  # what has imported models serves the next test too
    "RAY_enable_worker_prestart": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
}

import pytest
import ray

from ray_jobs.pretraining.job import Run, pretrain
from tests.ray.images import labelled_folder
from tests.ray.runs import small_run

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
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=OBJECT_STORE_BYTES,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def forty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty labelled images, the first of them corrupt."""
    return labelled_folder(tmp_path_factory.mktemp("forty") / "photos", num_images=40, num_corrupt=1)


@pytest.fixture(scope="session")
def uninterrupted(cluster: None, forty: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of one worker that nothing disturbed, of a name that not all programs can write."""
    return pretrain(small_run(), str(forty), str(tmp_path_factory.mktemp("one") / "it's größe 1"))
