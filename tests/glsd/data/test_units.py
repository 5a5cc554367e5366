"""A unit as a task makes it, in this process; Ray Data's part is in tests/ray_jobs/workers."""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from glsd.augment.multicrop import multicrop_batch
from glsd.config import DataConfig
from glsd.data.images import decode
from glsd.data.index import build_index
from glsd.data.order import Order
from glsd.data.units import UnitSource
from tests.glsd.training.small import small_config
from tests.images import labelled_folder
from tests.ray_jobs.runs import small_run

HEIGHT, WIDTH = 1500, 2000
NUM_IMAGES = 8
SEED, NUM_SMALL, NUM_CORRUPT, BATCH, UNIT, EPOCHS = 5, 12, 6, 4, 2, 2


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> UnitSource:
    """Of one unit, of large photographs, one of which is cut short."""
    folder: Path = tmp_path_factory.mktemp("large")
    for number in range(NUM_IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT // 100, WIDTH // 100, 3), np.uint8)
        path = folder / f"{number}.jpg"
        cv2.imwrite(str(path), cv2.resize(pixels, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))
    path.write_bytes(path.read_bytes()[:1000])
    config = small_run(**{"optim.batch_size": NUM_IMAGES, "data.unit_size": NUM_IMAGES})
    return UnitSource(config, build_index(folder, DataConfig()), None, "device")


@pytest.mark.parametrize(("scale", "num_images"), [((0.1, 0.2), 2), ((0.9, 1.0), 2.5)])
def test_a_task_keeps_one_decoded_image_the_copy_of_a_crop_and_the_files(
    source: UnitSource, scale: tuple[float, float], num_images: float
) -> None:
    source = replace(source, config=source.config.with_overrides({"augment.global_scale": scale}))
    tracemalloc.start()
    source.made(source.read(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < num_images * HEIGHT * WIDTH * 3


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> UnitSource:
    """Of two epochs of six units that hold all images, of which half are corrupt."""
    folder = labelled_folder(tmp_path_factory.mktemp("small") / "photos", NUM_SMALL, NUM_CORRUPT)
    config = small_config(seed=SEED, **{"optim.batch_size": BATCH, "optim.epochs": EPOCHS, "data.unit_size": UNIT})
    return UnitSource(config, build_index(folder, config.data), None, "device")


def test_the_crops_of_a_unit_are_those_of_its_decoded_images_keyed_by_the_seed_of_the_run_and_by_the_epoch(
    small: UnitSource,
) -> None:
    limits = small.config.data
    for epoch in range(EPOCHS):
        for k in range(epoch * NUM_SMALL // UNIT, (epoch + 1) * NUM_SMALL // UNIT):
            unit = small.made(small.read(k))
            ids = unit["image_id"]
            images = [decode(small.index.read(int(i)), limits.max_pixels, limits.value_range) for i in ids]
            for name, array in multicrop_batch(images, small.config.augment, SEED, epoch, ids, "device").items():
                np.testing.assert_array_equal(unit[name], array, err_msg=f"{name} of unit {k}")


def test_the_first_decodable_one_of_the_replacements_of_that_epoch_and_image_stands_in_for_a_corrupt_image(
    small: UnitSource,
) -> None:
    names = [Path(small.index.uri(image_id)).stem for image_id in range(NUM_SMALL)]
    corrupt = [image_id for image_id, name in enumerate(names) if int(name) < NUM_CORRUPT]
    order = Order(SEED, NUM_SMALL, BATCH, UNIT)
    num_skipped = list[int]()
    for k in range(small.num_units):
        epoch, scheduled = order.unit(k)
        expected, skipped = list[int](), list[list[int]]()
        for member in scheduled.tolist():
            tried = [member]
            while tried[-1] in corrupt:
                tried.append(order.replacement(epoch, member, len(tried) - 1))
            *skips, trained = tried
            expected.append(trained)
            skipped.append(skips)
            num_skipped.append(len(skips))
        unit = small.made(small.read(k))
        assert unit["image_id"].tolist() == expected
        assert [[image_id for image_id, _ in json.loads(skips)] for skips in unit["skips"].tolist()] == skipped
    assert num_skipped.count(0) == EPOCHS * (NUM_SMALL - NUM_CORRUPT)
    assert max(num_skipped) > 1, "a stand-in is corrupt, too"


def test_two_sources_that_differ_in_the_seed_alone_have_different_units(small: UnitSource) -> None:
    other = replace(small, config=small.config.with_overrides({"seed": SEED + 1}))
    ones, others = (
        [source.made(source.read(k))["image_id"].tolist() for k in range(NUM_SMALL // UNIT)]
        for source in (small, other)
    )
    assert ones != others
