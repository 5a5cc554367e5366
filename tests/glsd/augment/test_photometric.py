import colorsys
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glsd.augment.distributions import sample_views
from glsd.augment.photometric import normalize, photometric_device, photometric_worker
from glsd.config import AugmentConfig
from tests.glsd.augment.images import decibels, photograph, pillow_photometric, vector

CONFIG = AugmentConfig()
CROPS = np.stack([photograph(64, 64, seed) for seed in range(6)])
SINGLE = {
    "brightness up": vector(jitter=1, brightness=1.4),
    "brightness down": vector(jitter=1, brightness=0.6),
    "contrast up": vector(jitter=1, contrast=1.4),
    "contrast down": vector(jitter=1, contrast=0.6),
    "saturation up": vector(jitter=1, saturation=1.2),
    "saturation down": vector(jitter=1, saturation=0.8),
    "hue up": vector(jitter=1, hue=0.1),
    "hue down": vector(jitter=1, hue=-0.1),
    "grayscale": vector(grayscale=1),
    "weak blur": vector(blur_radius=0.3),
    "blur": vector(blur_radius=1.1),
    "strong blur": vector(blur_radius=2.0),
    "solarize": vector(solarize=1),
}


def on_device(crops: np.ndarray, pho: np.ndarray, config: AugmentConfig = CONFIG) -> np.ndarray:
    """(N, S, S, 3) of 0..255."""
    return 255 * photometric_device(torch.from_numpy(crops), torch.from_numpy(pho), config).permute(0, 2, 3, 1).numpy()


def repeated(pho: np.ndarray) -> np.ndarray:
    return np.tile(pho, (len(CROPS), 1))


def drawn(num_images: int) -> np.ndarray:
    return sample_views(CONFIG, 0, 0, np.arange(num_images), np.full((num_images, 2), 64)).pho[:, 1:3].reshape(-1, 12)


@pytest.mark.parametrize("name", SINGLE)
def test_each_operation_is_pillows(name: str) -> None:
    # Hue alone is quantised by Pillow and by OpenCV, each to its own bytes of hue and saturation.
    pho = SINGLE[name]
    for crop, worker, device in zip(
        CROPS, photometric_worker(CROPS, repeated(pho), CONFIG), on_device(CROPS, repeated(pho)), strict=True
    ):
        expected = pillow_photometric(crop, pho)
        assert decibels(expected, worker) >= 40
        assert decibels(expected, device) >= 40


def test_all_orders_of_the_jitter_are_pillows() -> None:
    crop = CROPS[:1]
    for order in itertools.permutations(range(4)):
        places = {f"jitter_{place + 1}": operation for place, operation in enumerate(order)}
        pho = vector(jitter=1, brightness=1.35, contrast=1.3, saturation=0.8, hue=0.07, **places)
        expected = pillow_photometric(crop[0], pho)
        assert decibels(expected, photometric_worker(crop, pho[None], CONFIG)[0]) >= 38
        assert decibels(expected, on_device(crop, pho[None])[0]) >= 38


def test_order_of_the_jitter_matters() -> None:
    fields = {"jitter": 1, "brightness": 1.4, "contrast": 0.6}
    first, last = vector(**fields), vector(**fields, jitter_1=1, jitter_2=0)
    assert decibels(*photometric_worker(CROPS[[0, 0]], np.stack([first, last]), CONFIG)) < 35
    assert decibels(*on_device(CROPS[[0, 0]], np.stack([first, last]))) < 35


def test_hue_is_turned_by_pillows_whole_steps() -> None:
    # Just short of 21 and of 25 steps of 255, which 256 to the circle would reach, and half-way between two.
    circle = [colorsys.hsv_to_rgb(hue / 1024, 1, 1) for hue in range(1024)]
    crop = np.rint(255 * np.array(circle)).astype(np.uint8).reshape(1, 32, 32, 3)

    def mean_turn(turned: np.ndarray) -> float:
        """Of all pixels, in steps."""
        hues = [colorsys.rgb_to_hsv(*pixel)[0] for pixel in turned.reshape(-1, 3).tolist()]
        turns = ((hue - index / 1024 + 0.5) % 1 - 0.5 for index, hue in enumerate(hues))
        return 255 * sum(turns) / len(hues)

    for hue in (-0.0978, 0.0821, 0.0978, 0.1):
        pho = vector(jitter=1, hue=hue)
        expected = mean_turn(pillow_photometric(crop[0], pho))
        assert abs(mean_turn(photometric_worker(crop, pho[None], CONFIG)) - expected) < 0.2
        assert abs(mean_turn(on_device(crop, pho[None])) - expected) < 0.2


def test_grayscale_then_blur_then_solarize_is_pillows_order() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    for fields in ({"blur_radius": 1.1}, {"grayscale": 1}, {"blur_radius": 1.1, "grayscale": 1}):
        pho = vector(solarize=1, **fields)
        expected = pillow_photometric(crop[0], pho)  # solarized first it has less than 20 dB
        assert decibels(expected, photometric_worker(crop, pho[None], CONFIG)[0]) >= 40
        assert decibels(expected, on_device(crop, pho[None])[0]) >= 40


def test_both_forms_are_pillows_for_drawn_vectors() -> None:
    pho = drawn(24)
    crops = np.stack([photograph(64, 64, seed) for seed in range(len(pho))])
    expected = [pillow_photometric(crop, row) for crop, row in zip(crops, pho, strict=True)]
    for result in (photometric_worker(crops, pho, CONFIG), on_device(crops, pho)):
        assert np.mean([min(decibels(a, b), 60) for a, b in zip(expected, result, strict=True)]) >= 43


def test_device_form_is_the_worker_form() -> None:
    pho = drawn(24)
    crops = np.stack([photograph(64, 64, seed) for seed in range(len(pho))])
    pairs = zip(photometric_worker(crops, pho, CONFIG), on_device(crops, pho), strict=True)
    assert np.mean([min(decibels(a, b), 60) for a, b in pairs]) >= 43


def test_a_crop_does_not_depend_on_its_batch() -> None:
    pho = drawn(3)
    together, worker = on_device(CROPS, pho), photometric_worker(CROPS, pho, CONFIG)
    for index in range(len(CROPS)):
        one = slice(index, index + 1)
        np.testing.assert_allclose(on_device(CROPS[one], pho[one]), together[one], atol=1e-3)
        np.testing.assert_array_equal(photometric_worker(CROPS[one], pho[one], CONFIG), worker[one])


def test_jitter_with_factors_of_identity_leaves_crops_as_they_are() -> None:
    pho = repeated(vector(jitter=1))
    np.testing.assert_array_equal(photometric_worker(CROPS, pho, CONFIG), CROPS)
    np.testing.assert_allclose(on_device(CROPS, pho), CROPS, atol=1e-2)


def test_nothing_asked_leaves_crops_as_they_are() -> None:
    pho = repeated(vector())
    np.testing.assert_array_equal(photometric_worker(CROPS, pho, CONFIG), CROPS)
    np.testing.assert_allclose(on_device(CROPS, pho), CROPS, atol=1e-3)


def test_blur_and_solarize_only_where_asked() -> None:
    pho = np.stack([vector(), vector(blur_radius=1.5), vector(), vector(solarize=1), vector(), vector(grayscale=1)])
    for result in (photometric_worker(CROPS, pho, CONFIG), np.rint(on_device(CROPS, pho)).astype(np.uint8)):
        for index in (0, 2, 4):
            np.testing.assert_array_equal(result[index], CROPS[index])
        assert all(np.any(result[index] != CROPS[index]) for index in (1, 3, 5))


@pytest.mark.parametrize("threshold", [0, 60, 128, 256])
def test_solarize_inverts_from_the_threshold_upwards(threshold: int) -> None:
    config = AugmentConfig(solarize_threshold=threshold)
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    expected = np.where(levels >= threshold, 255 - levels, levels)
    pho = vector(solarize=1)[None]
    np.testing.assert_array_equal(photometric_worker(levels, pho, config), expected)
    np.testing.assert_array_equal(np.rint(on_device(levels, pho, config)), expected)


@pytest.mark.parametrize("threshold", [40, 128, 200])
def test_solarize_of_colours_inverts_each_channel(threshold: int) -> None:
    config = AugmentConfig(solarize_threshold=threshold)
    expected = np.where(threshold > CROPS, CROPS, 255 - CROPS)
    pho = repeated(vector(solarize=1))
    np.testing.assert_array_equal(photometric_worker(CROPS, pho, config), expected)
    np.testing.assert_array_equal(np.rint(on_device(CROPS, pho, config)), expected)


def test_grayscale_has_equal_channels() -> None:
    pho = repeated(vector(grayscale=1))
    for result in (photometric_worker(CROPS, pho, CONFIG), on_device(CROPS, pho)):
        np.testing.assert_array_equal(result[..., 0], result[..., 1])
        np.testing.assert_array_equal(result[..., 0], result[..., 2])


def gaussian_blurred(line: list[float], radius: float, half: int) -> list[float]:
    """A line convolved with a Gaussian in plain loops, its edge pixels going on outside."""
    weights = [2.718281828459045 ** (-0.5 * (t / radius) ** 2) for t in range(-half, half + 1)]
    blurred = []
    for i in range(len(line)):
        terms = (
            w * line[min(max(i + t, 0), len(line) - 1)] for t, w in zip(range(-half, half + 1), weights, strict=True)
        )
        blurred.append(sum(terms) / sum(weights))
    return blurred


@settings(deadline=None, max_examples=25)
@given(line=st.lists(st.integers(0, 255), min_size=1, max_size=20), radius=st.floats(0.1, 2.0))
def test_blur_is_a_gaussian_of_its_radius(line: list[int], radius: float) -> None:
    size = len(line)
    crop = np.broadcast_to(np.array(line, np.uint8)[None, None, :, None], (1, size, size, 3)).copy()
    pho = vector(blur_radius=radius)[None]
    radius = float(pho[0, -2])
    expected = np.array(gaussian_blurred([float(value) for value in line], radius, 8))
    # Taps beyond three standard deviations are left out; they weigh 0.3 % together.
    np.testing.assert_allclose(on_device(crop, pho)[0, 0, :, 0], expected, atol=255 * 0.003)
    np.testing.assert_allclose(photometric_worker(crop, pho, CONFIG)[0, 0, :, 0], expected, atol=255 * 0.003 + 0.51)


def test_largest_radius_may_be_narrower_than_the_crop_is_wide() -> None:
    config = AugmentConfig(blur_radius=(5.0, 9.0))
    crop, pho = photograph(4, 4)[None], vector(blur_radius=9.0)[None]
    assert decibels(on_device(crop, pho, config), photometric_worker(crop, pho, config)) >= 50


def test_device_form_takes_one_pixel_and_no_crop() -> None:
    one = np.array([[[[9, 99, 199]]]], np.uint8)
    pho = vector(blur_radius=2.0)[None]
    np.testing.assert_allclose(on_device(one, pho), one, atol=1e-3)
    assert on_device(CROPS[:0], pho[:0]).shape == (0, 64, 64, 3)


def test_worker_form_leaves_its_input_and_takes_any_leading_axes() -> None:
    crops = CROPS.copy()
    pho = drawn(3)
    flat = photometric_worker(crops, pho, CONFIG)
    np.testing.assert_array_equal(crops, CROPS)
    nested = photometric_worker(crops.reshape(2, 3, 64, 64, 3), pho.reshape(2, 3, 12), CONFIG)
    np.testing.assert_array_equal(nested.reshape(flat.shape), flat)


def test_normalize_is_per_channel() -> None:
    config = AugmentConfig(mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    x = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    for channel in range(3):
        expected = (x[:, channel] - config.mean[channel]) / config.std[channel]
        torch.testing.assert_close(normalize(x, config)[:, channel], expected)
