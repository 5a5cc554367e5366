"""A unit as a task makes it, in this process; Ray Data's part is in ray/test_stream.py."""

import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest

from glsd.config import DataConfig
from glsd.data import build_index
from ray_jobs import stream
from ray_jobs.stream import UnitSource
from tests.ray.runs import small_run

HEIGHT, WIDTH = 1500, 2000
NUM_IMAGES = 8


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
    return UnitSource(config, build_index(folder, DataConfig()), {}, None, NUM_IMAGES, "device")


@pytest.mark.parametrize("images_at_once", [1, 3])
def test_a_unit_of_large_images_is_the_same_unit_with_few_of_them_decoded_at_once(
    source: UnitSource, images_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_bytes = HEIGHT * WIDTH * 3
    whole, peak_of_whole = made(source, NUM_IMAGES * image_bytes, monkeypatch)
    assert peak_of_whole > NUM_IMAGES * image_bytes
    in_parts, peak = made(source, images_at_once * image_bytes, monkeypatch)
    assert peak < (images_at_once + 3) * image_bytes  # the part, the next one's first, what decoding takes
    assert in_parts.keys() == whole.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(in_parts[name], array, err_msg=name)


def made(source: UnitSource, decoded_bytes: int, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, np.ndarray], int]:
    """The unit, and the most memory that making it took."""
    monkeypatch.setattr(stream, "DECODED_BYTES", decoded_bytes)
    tracemalloc.start()
    unit = source.unit(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return unit, peak
