"""One local cluster for all tests that need Ray: starting it anew would cost every test half a minute."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from ray_jobs.pretraining.job import Run, pretrain
from tests.images import labelled_folder
from tests.ray_jobs.runs import small_run

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
    """Four logical CPUs on this machine; the streams need one beside the training workers. All of its processes have
    credentials for the tests' object stores.
    """
    os.environ |= dict.fromkeys(("AWS_EC2_METADATA_DISABLED", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "true")
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
