"""A stream that starves says why."""

import threading

import pytest
import ray

from ray_jobs.workers.stream import share
from ray_jobs.workers.waiting import watched
from tests.ray_jobs.workers.test_stream import Numbers, numbers


@pytest.mark.ray
def test_a_worker_that_waits_for_a_cpu_says_so_until_there_is_one(cluster: None, tmp_path) -> None:
    others = ray.remote(num_cpus=ray.cluster_resources()["CPU"])(Holder).remote()
    ray.get(others.here.remote())
    said, was_said = [], threading.Event()

    def say(text: str) -> None:
        said.append(text)
        was_said.set()

    units = watched(share(Numbers(20, tmp_path), {}).of_rank(0), say, patience_s=3)
    release = threading.Thread(target=lambda: (was_said.wait(60), ray.kill(others)))
    release.start()
    assert numbers(units) == list(range(20))
    release.join()
    assert "none of the cluster's 4 CPUs is free to decode images" in said[0]


class Holder:
    def here(self) -> None:
        """An actor that has started holds its CPUs."""


def test_what_a_worker_does_between_units_is_not_waiting() -> None:
    said = []
    units = watched(iter([{}, {}, {}]), said.append, patience_s=0.05)
    for _ in units:
        threading.Event().wait(0.2)
    assert said == []
