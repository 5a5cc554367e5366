import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from glsd.augment.distributions import sample_views
from glsd.augment.vector import PHOTOMETRIC_FIELDS
from glsd.config import AugmentConfig

COLUMN = {name: index for index, name in enumerate(PHOTOMETRIC_FIELDS)}
MANY = 4000
OTHER = AugmentConfig(  # no value of a distribution is the paper's
    global_scale=(0.3, 0.6),
    local_sizes=(64, 32),
    num_local_crops=(3, 2),
    local_scale=(0.1, 0.2),
    aspect_ratio=(0.7, 1.6),
    horizontal_flip=0.3,
    vertical_flip=0.4,
    jitter_probability=0.6,
    brightness=0.3,
    contrast=0.5,
    saturation=0.25,
    hue=0.2,
    grayscale_probability=0.35,
    blur_probability=(0.7, 0.3, 0.2),
    blur_radius=(0.5, 1.5),
    solarize_probability=(0.1, 0.4, 0.3),
)


class Drawn(NamedTuple):
    """W of many images of 300 x 400 pixels."""

    config: AugmentConfig
    geo: np.ndarray
    pho: np.ndarray


def many(config: AugmentConfig, size: tuple[int, int] = (300, 400)) -> tuple[np.ndarray, np.ndarray]:
    return sample_views(config, 0, 0, np.arange(MANY), np.tile(size, (MANY, 1)))


@pytest.fixture(scope="module", params=[AugmentConfig(), OTHER], ids=["paper", "other"])
def drawn(request: pytest.FixtureRequest) -> Drawn:
    return Drawn(request.param, *many(request.param))


def assert_share(applied: np.ndarray, probability: float) -> None:
    """Within five standard deviations of a binomial's share; a draw is keyed, so this passes always or never."""
    assert abs(applied.mean() - probability) <= 5 * math.sqrt(probability * (1 - probability) / applied.size)


def assert_uniform_mean(values: np.ndarray, low: float, high: float, rounding: float = 0.0) -> None:
    """Within five standard deviations of the mean of so many uniform numbers."""
    assert abs(values.mean() - (low + high) / 2) < 5 * (high - low) / math.sqrt(12 * values.size) + rounding


def test_w_of_an_image_does_not_depend_on_its_batch() -> None:
    config, ids = AugmentConfig(), np.array([5, 900, 3])
    sizes = np.array([[300, 400], [31, 17], [640, 480]])
    together = sample_views(config, 1, 2, ids, sizes)
    for index in range(3):
        alone = sample_views(config, 1, 2, ids[index : index + 1], sizes[index : index + 1])
        np.testing.assert_array_equal(together.geo[index], alone.geo[0])
        np.testing.assert_array_equal(together.pho[index], alone.pho[0])


def test_w_of_a_view_does_not_depend_on_how_many_views_follow() -> None:
    ids, sizes = np.array([7]), np.array([[300, 400]])
    eight = sample_views(AugmentConfig(), 0, 0, ids, sizes)
    two = sample_views(AugmentConfig(num_local_crops=(2,)), 0, 0, ids, sizes)
    np.testing.assert_array_equal(eight.geo[:, :4], two.geo)
    np.testing.assert_array_equal(eight.pho[:, :4], two.pho)


def test_w_is_keyed_by_seed_epoch_and_image() -> None:
    def pho(seed: int, epoch: int, image_id: int) -> np.ndarray:
        return sample_views(AugmentConfig(), seed, epoch, np.array([image_id]), np.array([[64, 64]])).pho

    np.testing.assert_array_equal(pho(0, 1, 2), pho(0, 1, 2))
    others = [pho(0, 1, 2), pho(1, 1, 2), pho(0, 2, 2), pho(0, 1, 3), pho(2, 1, 0), pho(-1, 1, 2)]
    assert all(not np.array_equal(a, b) for i, a in enumerate(others) for b in others[:i])


def test_views_of_an_image_differ() -> None:
    geo, _ = sample_views(AugmentConfig(), 0, 0, np.array([0]), np.array([[300, 400]]))
    assert len({tuple(row[:4]) for row in geo[0].tolist()}) == 10


def test_views_come_as_globals_then_locals_by_size() -> None:
    config = AugmentConfig(global_size=224, local_sizes=(96, 48), num_local_crops=(3, 2))
    geo, pho = sample_views(config, 0, 0, np.arange(2), np.array([[300, 400]] * 2))
    assert geo.shape == (2, 7, 7)
    assert pho.shape == (2, 7, len(PHOTOMETRIC_FIELDS))
    assert geo.dtype == pho.dtype == np.float32
    assert geo[0, :, 4].tolist() == geo[0, :, 5].tolist() == [224, 224, 96, 96, 96, 48, 48]


def test_global_crops_alone_are_two_views() -> None:
    geo, _ = sample_views(AugmentConfig(local_sizes=(), num_local_crops=()), 0, 0, np.arange(1), np.array([[9, 9]]))
    assert geo.shape == (1, 2, 7)


def test_an_empty_batch_has_no_views() -> None:
    geo, _ = sample_views(AugmentConfig(), 0, 0, np.arange(0), np.zeros((0, 2), np.int64))
    assert geo.shape == (0, 10, 7)


def test_areas_and_aspects_lie_in_their_ranges_and_fill_them(drawn: Drawn) -> None:
    ul_x, ul_y, lr_x, lr_y = np.moveaxis(drawn.geo[..., :4].astype(np.float64), -1, 0)
    area, log_aspect = (lr_x - ul_x) * (lr_y - ul_y) / (300 * 400), np.log((lr_x - ul_x) / (lr_y - ul_y))
    scales = drawn.config.global_scale, drawn.config.local_scale
    for views, (low, high) in zip((slice(0, 2), slice(2, None)), scales, strict=True):
        assert low - 0.005 <= area[:, views].min() < low + 0.01
        assert high - 0.02 < area[:, views].max() <= high + 0.005
    # A local crop always fits, so its area and the logarithm of its aspect are uniform.
    low, high = np.log(drawn.config.aspect_ratio)
    assert_uniform_mean(area[:, 2:], *drawn.config.local_scale)
    assert_uniform_mean(log_aspect[:, 2:], low, high, rounding=0.002)
    assert low - 0.02 < log_aspect.min() < low + 0.02
    assert high - 0.02 < log_aspect.max() < high + 0.02


def test_places_are_uniform_up_to_both_edges(drawn: Drawn) -> None:
    ul_x, ul_y, lr_x, lr_y = np.moveaxis(drawn.geo[:, 2:, :4].astype(np.float64), -1, 0)
    for start, end, size in ((ul_x, lr_x, 400), (ul_y, lr_y, 300)):
        assert start.min() == 0
        assert end.max() == size
        assert_uniform_mean(start / np.maximum(size - (end - start), 1), 0, 1)


def test_photometrics_have_the_frequencies_asked(drawn: Drawn) -> None:
    config, geo, pho = drawn
    assert_share(np.isin(geo[..., 6], (1, 3)), config.horizontal_flip)
    assert_share(np.isin(geo[..., 6], (2, 3)), config.vertical_flip)
    assert_share(pho[..., COLUMN["jitter"]], config.jitter_probability)
    assert_share(pho[..., COLUMN["grayscale"]], config.grayscale_probability)
    for view in range(config.num_views):
        assert_share(pho[:, view, COLUMN["blur_radius"]] > 0, config.blur_probability[min(view, 2)])
        assert_share(pho[:, view, COLUMN["solarize"]], config.solarize_probability[min(view, 2)])


def test_flips_are_independent_and_vertical_counts_two() -> None:
    geo, _ = many(AugmentConfig(horizontal_flip=0.25, vertical_flip=0.5, num_local_crops=(1,)))
    for flip, probability in enumerate((0.375, 0.125, 0.375, 0.125)):
        assert_share(geo[..., 6] == flip, probability)


def test_factors_are_uniform_where_jitter_is_applied_and_identities_elsewhere(drawn: Drawn) -> None:
    config, _, pho = drawn
    jitter = pho[..., COLUMN["jitter"]] == 1
    ranges = {
        "brightness": (1 - config.brightness, 1 + config.brightness, 1),
        "contrast": (1 - config.contrast, 1 + config.contrast, 1),
        "saturation": (1 - config.saturation, 1 + config.saturation, 1),
        "hue": (-config.hue, config.hue, 0),
    }
    for name, (low, high, identity) in ranges.items():
        factor = pho[..., COLUMN[name]].astype(np.float64)
        assert np.all(factor[~jitter] == identity)
        applied = factor[jitter]
        assert low - 1e-6 <= applied.min() < low + 0.001 < high - 0.001 < applied.max() <= high + 1e-6
        assert_uniform_mean(applied, low, high)


def test_radius_is_uniform_where_blurred(drawn: Drawn) -> None:
    radius = drawn.pho[..., COLUMN["blur_radius"]].astype(np.float64)
    applied, (low, high) = radius[radius > 0], drawn.config.blur_radius
    assert low - 1e-6 <= applied.min() < low + 0.01
    assert high - 0.01 < applied.max() <= high
    assert_uniform_mean(applied, low, high)


def test_all_orders_of_the_jitter_are_equally_likely(drawn: Drawn) -> None:
    orders, counts = np.unique(drawn.pho[..., :4].reshape(-1, 4), axis=0, return_counts=True)
    assert sorted(map(sorted, orders.tolist())) == [[0, 1, 2, 3]] * 24
    for count in counts:
        assert_share(np.arange(MANY * drawn.config.num_views) < count, 1 / 24)


def test_a_strength_above_one_draws_no_negative_factor() -> None:
    _, pho = many(AugmentConfig(brightness=1.5, num_local_crops=(1,)))
    assert pho[..., COLUMN["brightness"]].min() >= 0


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (1, 1, [0, 0, 1, 1]),
        (1, 1000, [499, 0, 500, 1]),  # round(4/3 * 1) = 1 pixel wide, at its centre
        (1000, 1, [0, 499, 1, 500]),
        (10, 1000, [493, 0, 506, 10]),
        (1000, 10, [0, 493, 10, 506]),
    ],
)
def test_images_that_no_draw_fits_get_the_central_crop(height: int, width: int, box: list[int]) -> None:
    config = AugmentConfig(global_scale=(0.9, 1.0), local_scale=(0.9, 1.0))
    geo, _ = sample_views(config, 0, 0, np.arange(20), np.tile((height, width), (20, 1)))
    assert np.all(geo[..., :4] == box)


def test_a_narrow_image_gets_the_central_crop_as_often_as_after_torchvisions_ten_draws() -> None:
    # One draw in eight fits, so ten leave about a quarter of the views without a crop and three leave two thirds.
    height, width, box = 220, 100, (0, 43, 100, 176)
    geo, _ = many(AugmentConfig(num_local_crops=(1,)), (height, width))
    found = np.all(geo[:, :2, :4] == box, axis=-1)
    num_central, num_draws, image = 0, 2000, torch.empty(3, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(num_draws):
            top, left, h, w = RandomResizedCrop.get_params(image, scale=[0.4, 1.0], ratio=[3 / 4, 4 / 3])
            num_central += (left, top, left + w, top + h) == box
    expected = num_central / num_draws
    variance = expected * (1 - expected) * (1 / num_draws + 1 / found.size)
    assert abs(found.mean() - expected) <= 5 * math.sqrt(variance)


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 80),
    width=st.integers(1, 80),
    aspect=st.tuples(st.floats(0.1, 8), st.floats(1, 4)),
    seed=st.integers(-(2**40), 2**70),
)
def test_boxes_lie_within_the_image(height: int, width: int, aspect: tuple[float, float], seed: int) -> None:
    config = AugmentConfig(aspect_ratio=(aspect[0], aspect[0] * aspect[1]), vertical_flip=0.5)
    geo, _ = sample_views(config, seed, 3, np.arange(3), np.tile((height, width), (3, 1)))
    ul_x, ul_y, lr_x, lr_y = np.moveaxis(geo[..., :4], -1, 0)
    assert np.all((ul_x >= 0) & (ul_x < lr_x) & (lr_x <= width))
    assert np.all((ul_y >= 0) & (ul_y < lr_y) & (lr_y <= height))
    assert np.all(geo[..., :4] == np.round(geo[..., :4]))


def test_an_image_without_pixels_is_named() -> None:
    with pytest.raises(ValueError, match="image 8 is 0 x 5 pixels"):
        sample_views(AugmentConfig(), 0, 0, np.array([7, 8]), np.array([[4, 4], [0, 5]]))
