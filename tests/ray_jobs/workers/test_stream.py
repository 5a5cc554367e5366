"""The stream on a cluster, without a trainer: its units are those of the source, dealt out in turn."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.data import DataIterator

from glsd.config import DataConfig
from glsd.data.index import build_index
from glsd.data.units import UnitSource
from glsd.training.batch import Unit
from ray_jobs.cluster.files import place_files, share_files
from ray_jobs.workers.stream import received, share, stream, stream_options
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


def dealt(source: UnitSource, start_unit: int, num_workers: int) -> list[list[Unit]]:
    """What each worker receives, all of them at once."""

    def consume(shard: DataIterator) -> list[Unit]:
        # To the end even where a unit failed: Ray Data's own thread waits for it.
        arrived = list(shard.iter_batches(batch_size=source.config.data.unit_size, batch_format="numpy"))
        return list(received(arrived))

    units = stream(share(source, share_files([source.index])), start_unit)
    units.context.execution_options = stream_options()
    with ThreadPoolExecutor(num_workers) as workers:
        return list(workers.map(consume, units.streaming_split(num_workers, equal=True)))


@pytest.mark.ray
@pytest.mark.parametrize(("num_workers", "start_unit"), [(1, 0), (2, 0), (2, 6)])
def test_worker_r_of_w_receives_units_i_w_plus_r_from_any_start_as_the_source_makes_them(
    source: UnitSource, num_workers: int, start_unit: int
) -> None:
    for rank, units in enumerate(dealt(source, start_unit, num_workers)):
        expected = list(range(start_unit + rank, 2 * source.order.units_per_epoch, num_workers))
        assert [int(unit["unit"][0]) for unit in units] == expected
        for unit, k in zip(units, expected, strict=True):
            for name, array in source.unit(k).items():
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
    ("is_linked", "message"), [(False, "is gone since the index was made"), (True, "failed 3 times: ")]
)
def test_an_image_that_cannot_be_read_stops_the_stream_in_words(
    source: UnitSource, tmp_path: Path, is_linked: bool, message: str
) -> None:
    photos = labelled_folder(tmp_path / "photos", num_images=40)
    index = build_index(photos, DataConfig())
    image = photos / "rings" / "002.png"
    image.unlink()
    if is_linked:
        image.symlink_to(image)  # reading it is an error of the disk, as far as anyone can tell
    with pytest.raises(ValueError, match=rf"^[^\n]*002\.png {message}[^\n]*$"):
        dealt(replace(source, index=index), 0, 1)


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
