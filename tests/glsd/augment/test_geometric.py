import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glsd.augment.geometric import crop_into
from glsd.geometry import positions
from tests.glsd.augment.images import decibels, photograph, pillow_geometric


def cropped(image: np.ndarray, *geo: float) -> np.ndarray:
    out = np.zeros((int(geo[4]), int(geo[5]), 3), np.uint8)
    crop_into(image, np.array([geo], np.float32), [out])
    return out


@settings(deadline=None, max_examples=40)
@given(
    box=st.tuples(st.integers(0, 150), st.integers(0, 150), st.integers(50, 100), st.integers(50, 100)),
    size=st.sampled_from([(24, 24), (32, 16), (48, 48)]),
    flip=st.integers(0, 3),
    cells=st.sampled_from([2, 4, 8]),
)
def test_coordinates_sent_through_g_are_positions(
    box: tuple[int, int, int, int], size: tuple[int, int], flip: int, cells: int
) -> None:
    # An image whose red is x and green is y (one level a pixel) loses at most the rounding of a level on its way.
    x, y = np.meshgrid(np.arange(256), np.arange(256))
    coordinates = np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8)
    geo = (box[0], box[1], box[0] + box[2], box[1] + box[3], *size, flip)
    crop = cropped(coordinates, *geo)[..., :2].astype(np.float64)
    patches = crop.reshape(cells, size[0] // cells, cells, size[1] // cells, 2).mean(axis=(1, 3))
    e = positions(torch.tensor([geo], dtype=torch.float32), (cells, cells))[0].numpy()
    # At the border the filter's support is cut off and its centre moves inwards, in Pillow as here.
    inner = slice(1, -1) if cells > 2 else slice(None)
    tolerance = 0.75 if cells > 2 else 1.5
    np.testing.assert_allclose(patches[inner, inner], e[inner, inner], atol=tolerance)


@pytest.mark.parametrize("flip", range(4))
@pytest.mark.parametrize(
    "box", [(0, 0, 200, 150), (13, 21, 120, 99), (50, 50, 90, 80), (199, 149, 200, 150), (10, 0, 11, 150)]
)
def test_g_is_pillows_bicubic(box: tuple[int, int, int, int], flip: int) -> None:
    image, geo = photograph(150, 200), (*box, 64, 64, flip)
    assert decibels(cropped(image, *geo), pillow_geometric(image, np.array(geo))) >= 55


def test_a_crop_of_its_own_size_is_unchanged() -> None:
    image = photograph(60, 80)
    np.testing.assert_array_equal(cropped(image, 10, 20, 42, 52, 32, 32, 0), image[20:52, 10:42])


def test_flips_reverse_columns_and_rows() -> None:
    image = photograph(60, 80)
    upright = cropped(image, 5, 6, 70, 50, 32, 32, 0)
    np.testing.assert_array_equal(cropped(image, 5, 6, 70, 50, 32, 32, 1), upright[:, ::-1])
    np.testing.assert_array_equal(cropped(image, 5, 6, 70, 50, 32, 32, 2), upright[::-1])
    np.testing.assert_array_equal(cropped(image, 5, 6, 70, 50, 32, 32, 3), upright[::-1, ::-1])


def test_pixels_outside_the_box_do_not_matter() -> None:
    image = photograph(60, 80)
    other = np.full_like(image, 255)
    other[6:50, 5:70] = image[6:50, 5:70]
    np.testing.assert_array_equal(cropped(image, 5, 6, 70, 50, 32, 32, 0), cropped(other, 5, 6, 70, 50, 32, 32, 0))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (2, 3)])
def test_thin_images_are_enlarged(height: int, width: int) -> None:
    image = np.full((height, width, 3), (7, 130, 250), np.uint8)
    assert np.all(cropped(image, 0, 0, width, height, 16, 16, 3) == (7, 130, 250))


def test_crops_are_written_into_a_batch() -> None:
    batch = np.zeros((2, 3, 16, 16, 3), np.uint8)
    geo = np.array([[0, 0, 40, 40, 16, 16, flip] for flip in range(3)], np.float32)
    crop_into(photograph(40, 40), geo, list(batch[1]))
    assert np.all(batch[0] == 0)
    np.testing.assert_array_equal(batch[1, 1], batch[1, 0][:, ::-1])
    np.testing.assert_array_equal(batch[1, 2], batch[1, 0][::-1])


def test_read_only_images_are_cropped() -> None:
    image = photograph(40, 40)
    image.flags.writeable = False
    np.testing.assert_array_equal(cropped(image, 0, 0, 40, 40, 40, 40, 0), image)
