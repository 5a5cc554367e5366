"""The stream on a cluster, without a trainer: each rank's units are those of the source, in order, exactly once."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import ray

from glsd.config import DataConfig
from glsd.data.index import build_index
from glsd.data.order import Order
from glsd.data.units import MAX_UNIT_BYTES, EncodedUnit, UnitSource
from glsd.training.batch import Unit
from ray_jobs.cluster.files import place_files, share_files
from ray_jobs.workers.stream import ATTEMPTS, share
from tests.images import labelled_folder
from tests.ray_jobs.runs import small_run

CORRUPT = 0


@pytest.fixture(scope="module")
def source(cluster: None, forty: Path) -> UnitSource:
    """Two epochs of five steps of two units of two images, of a regime that holds the corrupt image."""
    config = small_run(**{"optim.epochs": 2, "optim.batch_size": 4, "data.unit_size": 2})
    regime = np.arange(0, 40, 2)
    index = build_index(forty, DataConfig())
    return UnitSource(config, index, regime, "device")


def dealt(source: UnitSource, first_unit: int, workers: int) -> list[list[Unit]]:
    """What each worker receives, all of them at once."""
    stream = share(source, share_files([source.index]))
    with ThreadPoolExecutor(workers) as ranks:
        return list(ranks.map(lambda rank: list(stream.of_rank(first_unit, rank, workers)), range(workers)))


@pytest.mark.ray
@pytest.mark.parametrize(("workers", "first_unit"), [(1, 0), (2, 0), (2, 6)])
def test_worker_r_of_w_receives_units_i_w_plus_r_from_any_start_as_the_source_makes_them(
    source: UnitSource, workers: int, first_unit: int
) -> None:
    for rank, units in enumerate(dealt(source, first_unit, workers)):
        expected = list(range(first_unit + rank, 2 * source.order.units_per_epoch, workers))
        assert [int(unit["unit"][0]) for unit in units] == expected
        for unit, k in zip(units, expected, strict=True):
            for name, array in source.made(source.read(k)).items():
                np.testing.assert_array_equal(unit[name], array, err_msg=f"{name} of unit {k}")


@pytest.mark.ray
def test_an_undecodable_image_is_replaced_in_a_unit_of_full_size_and_travels_as_a_skip_with_its_reason(
    source: UnitSource,
) -> None:
    (units,) = dealt(source, 0, 1)
    skips = []
    for unit in units:
        epoch, members = source.order.unit(int(unit["unit"][0]))
        assert {len(array) for array in unit.values()} == {2}
        for place, skipped in enumerate(unit["skips"].tolist()):
            scheduled, trained = 2 * int(members[place]), int(unit["image_id"][place])
            assert trained != CORRUPT
            if json.loads(skipped):
                assert scheduled == CORRUPT
                assert trained % 2 == 0  # the replacement is of the regime, too
                skips += [(epoch, image_id, reason) for image_id, reason in json.loads(skipped)]
            else:
                assert trained == scheduled
    assert [(epoch, image_id) for epoch, image_id, _ in skips] == [(0, CORRUPT), (1, CORRUPT)]
    assert all("truncated" in reason for _, _, reason in skips)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("is_linked", "kind", "message"),
    [(False, ValueError, "is gone since the index was made"), (True, OSError, "failed 3 times: ")],
)
def test_an_image_that_cannot_be_read_stops_the_stream_in_words(
    source: UnitSource, tmp_path: Path, is_linked: bool, kind: type[Exception], message: str
) -> None:
    photos = labelled_folder(tmp_path / "photos", num_images=40)
    index = build_index(photos, DataConfig())
    image = photos / "rings" / "002.png"
    image.unlink()
    if is_linked:
        image.symlink_to(image)  # reading it is an error of the disk, as far as anyone can tell
    with pytest.raises(kind, match=rf"^[^\n]*002\.png {message}[^\n]*$"):
        dealt(replace(source, index=index), 0, 1)


@dataclass(frozen=True)
class Numbers:
    """Units of two rows that hold only their number; reading some of them fails as often as is said."""

    num_units: int
    folder: Path
    failing: tuple[int, ...] = ()
    num_failures: int = 0
    unit_bytes: int = MAX_UNIT_BYTES // 3

    @property
    def order(self) -> Order:
        return Order(0, 4, 4, 2)

    def read(self, k: int) -> EncodedUnit:
        if k in self.failing and len(tries := list(self.folder.glob(f"{k}-*"))) < self.num_failures:
            (self.folder / f"{k}-{len(tries)}").touch()
            raise OSError(f"unit {k} is out of reach")
        return EncodedUnit(k, 0, [])

    def made(self, unit: EncodedUnit) -> dict[str, np.ndarray]:
        return self.blank(unit.k)

    def blank(self, k: int) -> dict[str, np.ndarray]:
        return {"unit": np.full(2, k)}


def numbers(units: Iterator[Unit]) -> list[int]:
    received = [unit["unit"].tolist() for unit in units]
    assert all(len(rows) == 2 and len(set(rows)) == 1 for rows in received)
    return [rows[0] for rows in received]


@pytest.mark.ray
def test_thousands_of_units_of_many_tasks_and_several_executions_come_in_order_exactly_once(
    cluster: None, tmp_path: Path
) -> None:
    stream = share(Numbers(4001, tmp_path), {}, execution_tasks=150)
    with ThreadPoolExecutor(3) as ranks:
        received = list(ranks.map(lambda rank: numbers(stream.of_rank(100, rank, 3)), range(3)))
    assert received == [list(range(100 + rank, 4001, 3)) for rank in range(3)]


@pytest.mark.ray
def test_a_unit_whose_images_were_out_of_reach_is_made_again_in_its_place_by_a_new_execution(
    cluster: None, tmp_path: Path
) -> None:
    stream = share(Numbers(30, tmp_path, failing=(0, 13, 29), num_failures=ATTEMPTS - 1), {}, execution_tasks=4)
    assert numbers(stream.of_rank(0)) == list(range(30))


@pytest.mark.ray
def test_a_unit_whose_images_stay_out_of_reach_fails_the_worker_after_the_units_before_it(
    cluster: None, tmp_path: Path
) -> None:
    units = share(Numbers(30, tmp_path, failing=(8,), num_failures=ATTEMPTS), {}).of_rank(0)
    for k in range(8):
        assert next(units)["unit"].tolist() == [k, k]
    with pytest.raises(OSError, match=r"^unit 8 is out of reach$"):
        next(units)


@dataclass(frozen=True)
class Opening(Numbers):
    """Numbers from a file that it notes to have opened."""

    @cached_property
    def opened(self) -> None:
        (self.folder / str(uuid4())).touch()

    def read(self, k: int) -> EncodedUnit:
        assert self.opened is None
        return EncodedUnit(k, 0, [])


@pytest.mark.ray
def test_what_a_process_has_opened_stays_open_for_all_of_its_tasks(cluster: None, tmp_path: Path) -> None:
    num_tasks = 40
    assert numbers(share(Opening(num_tasks, tmp_path, unit_bytes=MAX_UNIT_BYTES), {}).of_rank(0)) == list(range(40))
    assert 1 <= len(list(tmp_path.iterdir())) < num_tasks / 2


@pytest.mark.ray
def test_all_tasks_of_a_node_that_lacks_a_file_wait_for_the_first_to_write_it(cluster: None, tmp_path: Path) -> None:
    path, content = tmp_path / "cache" / "index-0.arrow", bytes(64 * 2**20)
    num_tasks, files = 3, {str(path): ray.put(content)}

    def place(task: int) -> tuple[int, int]:
        (tmp_path / str(task)).touch()
        while not all((tmp_path / str(other)).exists() for other in range(num_tasks)):
            time.sleep(0.01)
        place_files(files)
        return path.stat().st_ino, path.stat().st_size

    placed = ray.get([ray.remote(place).remote(task) for task in range(num_tasks)])
    assert placed == [(path.stat().st_ino, len(content))] * num_tasks
