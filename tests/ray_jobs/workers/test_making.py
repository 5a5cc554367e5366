"""What a training says of its stream, held to what was done: requests, hits, how far units are made ahead."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from glsd.config import DataConfig
from glsd.data.index import build_index
from glsd.data.tars import write_tar
from glsd.data.units import UnitSource
from ray_jobs.cluster.files import share_files
from ray_jobs.workers.making import MAKING, Making, Meter, Received, stream_metrics
from ray_jobs.workers.stream import share
from tests.glsd.storage.object_store import object_store
from tests.images import labelled_folder
from tests.ray_jobs.runs import small_run

NUM_IMAGES, UNITS_PER_EPOCH = 40, 10


class Clock:
    """One that is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_units_waiting_and_ahead_are_those_that_a_list_of_begun_made_and_received_times_has() -> None:
    rng = np.random.default_rng(0)
    begun = np.sort(rng.uniform(0, 100, 300))
    made = begun + rng.exponential(3, 300)
    received = np.maximum.accumulate(np.maximum(made, rng.uniform(0, 130, 300))) + np.arange(300) * 1e-6
    clock = Clock()
    meter = Meter(clock)
    for begun_at, made_at, clock.now in zip(begun, made, received, strict=True):
        meter.add({MAKING: Making(begun_at, made_at, os.getpid(), 0, 0, 0).column(4)})
    found = meter.read()
    assert found.num_waiting == sum(
        sum(made_at < earlier < own for earlier in received) for made_at, own in zip(made, received, strict=True)
    )
    assert found.num_ahead == sum(
        sum(begun_at < earlier < own for earlier in received) for begun_at, own in zip(begun, received, strict=True)
    )
    assert (found.seconds, found.num_units) == (received[-1], 300)
    assert meter.read()[:4] == (0.0, 0, 0, 0)


def test_a_queue_of_five_units_is_five_however_long_the_worker_pauses() -> None:
    clock = Clock()
    meter, made_at = Meter(clock), list[float]()
    for step in range(100):
        clock.now += 60 if step == 50 else 0.1
        made_at.append(clock.now - 0.01)
        if step >= 5:
            meter.add({MAKING: Making(made_at[step - 5] - 0.2, made_at[step - 5], 0, 0, 0, 0).column(1)})
        if step == 20:
            meter.read()
    found = meter.read()
    assert found.num_waiting == 5 * found.num_units
    assert found.num_ahead == 7 * found.num_units - 3  # of those begun in the pause


@pytest.mark.ray
def test_the_metrics_are_those_of_all_workers_and_none_is_told_of_what_there_was_not(cluster: None) -> None:
    idle = Received(2.0, 0, 0, 0, 0, 0, 0, 0)
    assert stream_metrics([idle, idle]) == {}
    metrics = stream_metrics([Received(2.0, 4, 8, 20, 3, 1, 2, 700), Received(4.0, 4, 4, 12, 1, 0, 1, 900), idle])
    assert 0 <= metrics.pop("object_store") <= 1
    assert metrics == {
        "units_per_s": 3.0, "units_waiting": 3.0, "units_ahead": 8.0, "requests": 4, "coordinator_bytes": 900,
        "cache_hit_rate": 0.25,
    }  # fmt: skip
    assert not {"coordinator_bytes", "cache_hit_rate"} & set(stream_metrics([Received(1.0, 1, 0, 1, 5, 0, 0, 0)]))


@pytest.fixture
def stored(cluster: None, tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A store with forty images in files and in two tars, its address, and what it is asked."""
    photos, shards = labelled_folder(tmp_path / "store/bucket/photos", NUM_IMAGES), tmp_path / "store/bucket/shards"
    shards.mkdir()
    files = sorted(photos.rglob("*.*"))
    for number, part in enumerate((files[:20], files[20:])):
        with (shards / f"{number}.tar").open("wb") as stream:
            write_tar(stream, ((path.name, path.read_bytes()) for path in part))
    asked = list[str]()
    with object_store(tmp_path / "store", asked) as address:
        yield f"?endpoint_override={address}&scheme=http", asked


def read_epoch(source: UnitSource, epoch: int) -> Received:
    """What a worker receives in an epoch, the tasks of which begin when that before has ended."""
    config = source.config.with_overrides({"optim.epochs": epoch + 1})
    meter = Meter()
    for unit in share(replace(source, config=config), {}).of_rank(epoch * UNITS_PER_EPOCH):
        meter.add(unit)
    return meter.read()


@pytest.mark.ray
@pytest.mark.parametrize("kind", ["photos", "shards"])
def test_requests_are_those_that_the_store_sees_and_with_a_cache_an_image_is_missed_once(
    stored: tuple[str, list[str]], kind: str
) -> None:
    address, asked = stored
    source = UnitSource(small_run(), build_index(f"s3://bucket/{kind}{address}", DataConfig()), None, "device")
    for cache_bytes, hits, misses in ((0, 0, 0), (2**30, 0, NUM_IMAGES), (2**30, NUM_IMAGES, 0)):
        asked.clear()
        found = read_epoch(replace(source, cache_bytes=cache_bytes), epoch=1 if hits else 0)
        assert found.num_units == UNITS_PER_EPOCH
        assert (found.cache_hits, found.cache_misses) == (hits, misses)
        assert found.requests == len(asked)
        assert asked.count("GET") == NUM_IMAGES - hits
        if hits:
            assert asked == []
        elif kind == "photos":
            assert asked.count("HEAD") == NUM_IMAGES
        else:  # of each process that reads it, a tar stays open
            assert (0 if cache_bytes else 2) <= asked.count("HEAD") < NUM_IMAGES


@pytest.mark.ray
def test_the_coordinator_of_a_unit_is_the_process_that_started_its_task_and_its_memory_is_what_it_shares_with_no_one(
    cluster: None, forty: Path
) -> None:
    source = UnitSource(small_run(), build_index(forty, DataConfig()), None, "device")
    units, meter = share(source, share_files([source.index])).of_rank(0), Meter()
    unit = next(units)
    meter.add(unit)
    process = psutil.Process(int(Making(*unit[MAKING][0]).coordinator))
    assert "SplitCoordinator" in " ".join(process.cmdline())
    assert meter.read().coordinator_bytes == pytest.approx(process.memory_full_info().uss, rel=0.2)
