"""Correspondence (Sec. 4.7): matchings held to a known truth, against plain loops and projective arithmetic."""

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from glsd.config import AugmentConfig, Config
from glsd.encoder.encoder import untrained_encoder
from glsd.evaluation.correspondence import (
    Correspondence,
    cell_centers,
    correspondence,
    flip_truth,
    homography_truth,
    image_pair_correspondence,
    mean_correspondence,
    transformed_view,
)

LEFT_THEN_DOWN = torch.tensor([[1.0, 0.0, -4.0], [0.0, 1.0, 4.0], [0.0, 0.0, 1.0]])


def random_map(batch: int, height: int, width: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(batch, height, width, dim, generator=torch.Generator().manual_seed(seed))


def oracle(
    z_a: torch.Tensor, z_b: torch.Tensor, truth: torch.Tensor, size: int, num_top: int
) -> tuple[float, float, float, float]:
    """Accuracy and error of one pair of views, over all and over the most similar locations, location by location."""
    found: list[tuple[float, bool, float]] = []  # cosine, right cell, distance
    rows, columns = z_b.shape[:2]
    for i in range(z_a.shape[0]):
        for j in range(z_a.shape[1]):
            x, y = truth[i, j].tolist()
            if math.isnan(x):
                continue
            cosines = {
                (row, column): float(torch.cosine_similarity(z_a[i, j].double(), z_b[row, column].double(), dim=0))
                for row in range(rows)
                for column in range(columns)
            }
            row, column = max(cosines, key=lambda cell: cosines[cell])
            left, top = column * size / columns - 0.5, row * size / rows - 0.5  # edges of the matched cell
            inside = left <= x < left + size / columns and top <= y < top + size / rows
            distance = math.hypot(left + size / columns / 2 - x, top + size / rows / 2 - y)
            found.append((cosines[row, column], inside, distance))
    top_pairs = sorted(found, key=lambda match: -match[0])[:num_top]

    def means(matches: list[tuple[float, bool, float]]) -> tuple[float, float]:
        return sum(m[1] for m in matches) / len(matches), sum(m[2] for m in matches) / len(matches)

    return *means(found), *means(top_pairs)


@settings(max_examples=25, deadline=None)
@given(
    grid_a=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    grid_b=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.integers(5, 300),
    num_top=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_accuracy_and_error_equal_those_of_plain_loops_with_points_outside_left_out(
    grid_a: tuple[int, int], grid_b: tuple[int, int], size: int, num_top: int, seed: int
) -> None:
    z_a, z_b = random_map(2, *grid_a, 6, seed), random_map(2, *grid_b, 6, seed + 1)
    points = np.random.default_rng(seed).uniform(-0.3 * size, 1.3 * size, (2, *grid_a, 2)).astype(np.float32)
    points[:, 0, 0] = 0.0  # one point at least is inside
    inside = ((points >= -0.5) & (points < size - 0.5)).all(-1, keepdims=True)
    truth = torch.from_numpy(np.where(inside, points, np.nan).astype(np.float32))
    found = correspondence(z_a, z_b, truth, size, num_top)
    for pair in range(2):
        expected = oracle(z_a[pair], z_b[pair], truth[pair], size, num_top)
        assert [float(values[pair]) for values in found[:4]] == pytest.approx(expected, rel=1e-4)
        assert found.num_pairs[pair] == inside[pair].sum()
        assert found.num_top[pair] == min(num_top, inside[pair].sum())


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), size=st.integers(9, 500))
def test_a_perfect_matcher_of_a_flip_has_accuracy_one_and_error_zero_exactly(
    height: int, width: int, size: int
) -> None:
    z = torch.nn.functional.normalize(random_map(3, height, width, 96, 0), dim=-1)
    found = correspondence(z, z.flip(2), flip_truth((height, width), size), size)
    assert found.accuracy.tolist() == found.accuracy_top.tolist() == [1.0] * 3
    assert found.error_px.tolist() == found.error_top_px.tolist() == [0.0] * 3


def test_one_that_ignores_the_flip_is_right_in_the_middle_column_only() -> None:
    z = torch.eye(9).reshape(1, 3, 3, 9)
    found = correspondence(z, z, flip_truth((3, 3), 96), 96)
    assert found.accuracy.item() == pytest.approx(1 / 3)
    assert found.error_px.item() == pytest.approx((64 + 0 + 64) / 3)


def test_the_mean_over_images_does_not_depend_on_how_they_were_batched() -> None:
    z_a, z_b = random_map(7, 4, 4, 5, 0), random_map(7, 4, 4, 5, 1)
    truth = homography_truth(LEFT_THEN_DOWN, (4, 4), 16, 16).expand(7, 4, 4, 2).clone()
    truth[5] = torch.nan  # an image without overlap counts nowhere
    whole = mean_correspondence([correspondence(z_a, z_b, truth, 16)])
    parts = [correspondence(z_a[rows], z_b[rows], truth[rows], 16) for rows in (slice(0, 4), slice(4, 6), slice(6, 7))]
    assert mean_correspondence(parts) == whole
    assert (whole.num_images, whole.num_top) == (6, 9)  # the left column and the bottom row move out of the view
    separate = [c for i in range(7) if i != 5 for c in correspondence(z_a[[i]], z_b[[i]], truth[[i]], 16).error_px]
    assert whole.error_px == pytest.approx(sum(map(float, separate)) / 6)


def test_views_without_a_common_location_have_no_mean() -> None:
    z = random_map(1, 2, 2, 3, 0)
    with pytest.raises(ValueError, match="no location"):
        mean_correspondence([correspondence(z, z, torch.full((2, 2, 2), torch.nan), 8)])


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.floats(-0.4, 0.4), min_size=8, max_size=8),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size_a=st.integers(10, 300),
    size_b=st.integers(10, 300),
)
def test_homography_truth_equals_projective_arithmetic(
    values: list[float], grid: tuple[int, int], size_a: int, size_b: int
) -> None:
    h = np.append(values, 0).reshape(3, 3) * [[1, 1, size_b], [1, 1, size_b], [1 / size_a, 1 / size_a, 1]] + np.eye(3)
    truth = homography_truth(torch.from_numpy(h), grid, size_a, size_b)
    for i in range(grid[0]):
        for j in range(grid[1]):
            x, y = (j + 0.5) * size_a / grid[1] - 0.5, (i + 0.5) * size_a / grid[0] - 0.5
            u, v, w = (row[0] * x + row[1] * y + row[2] for row in h.tolist())
            edges = (-0.5, size_b - 0.5)
            if w <= 0 or not all(edges[0] <= value / w < edges[1] for value in (u, v)):
                assert truth[i, j].isnan().all() or min(abs(p / w - e) for p in (u, v) for e in edges) < 1e-3
            else:
                assert truth[i, j].tolist() == pytest.approx([u / w, v / w], abs=1e-3)


def photograph(height: int, width: int) -> np.ndarray:
    """Red grows to the right and green downwards, under a blue texture: nearby places look alike, others do not."""
    y, x = np.mgrid[:height, :width] / np.array([[[height]], [[width]]])
    texture = cv2.resize(np.random.default_rng(0).uniform(0, 60, (30, 30)), (width, height))
    return np.stack([250 * x, 250 * y, texture], -1).astype(np.uint8)


class Colours(torch.nn.Module):
    """A backbone to which patches of 16 px are the more alike the nearer their mean colours are."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        colours = torch.nn.functional.avg_pool2d(images, 16).permute(0, 2, 3, 1) / 2
        z = torch.cat([colours.sin(), colours.cos()], -1)  # the cosine of two is the mean cosine of the differences
        return z.mean((1, 2)), z


def test_a_photograph_and_its_perspective_view_of_another_size_are_matched_where_the_homography_says() -> None:
    config = Config().with_overrides({"model.backbone": "test_vit", "evaluation.resize": 128, "evaluation.crop": 128})
    config = config.with_overrides({"augment.global_size": 64, "augment.local_sizes": (32,)})
    encoder = untrained_encoder(config)
    encoder.backbone = Colours()
    encoder.register_parameter("anywhere", torch.nn.Parameter(torch.zeros(1), requires_grad=False))
    image = photograph(300, 400)
    homography = np.array([[0.8, 0.1, 20.0], [-0.05, 0.9, 30.0], [2e-4, 1e-4, 1.0]])
    warped = cv2.warpPerspective(image, homography, (360, 280))
    pair = image_pair_correspondence(encoder, image, warped, homography)
    found = pair.correspondence
    assert pair.view_a.shape == pair.view_b.shape == (128, 128, 3)
    assert found.num_pairs.item() > 40
    assert found.accuracy.item() > 0.6
    assert found.error_px.item() < 16  # cells have 16 px, and views are 128 px wide
    # Pixels say so, too: what lies at the truth in view b looks like the location in view a.
    known = found.truth[0].isfinite().all(-1)
    places_a, places_b = (xy[known].round().long() for xy in (found.xy, found.truth[0]))
    seen_a, seen_b = (
        view[p[:, 1], p[:, 0]].astype(float) for view, p in ((pair.view_a, places_a), (pair.view_b, places_b))
    )
    assert np.abs(seen_a - seen_b).mean() < 12
    wrong = image_pair_correspondence(encoder, image, warped, np.eye(3)).correspondence
    assert wrong.accuracy.item() < 0.3


def test_two_images_without_a_known_homography_are_matched_but_not_judged() -> None:
    config = Config().with_overrides(
        {"model.backbone": "test_convnext", "evaluation.resize": 96, "evaluation.crop": 96}
    )
    encoder = untrained_encoder(config)
    found = image_pair_correspondence(encoder, photograph(80, 90), photograph(200, 100)).correspondence
    assert found.matched_xy.isfinite().all()
    assert found.similarity.isfinite().all()
    assert found.num_pairs.item() == 0
    assert found.accuracy.isnan().all()


def test_the_transformed_view_is_the_flip_with_other_colours_and_no_blur() -> None:
    image = photograph(64, 64)
    plain = AugmentConfig(jitter_probability=0.0, grayscale_probability=0.0, blur_probability=(1.0, 1.0, 1.0))
    assert np.array_equal(transformed_view(image, 0, 3, plain), image[:, ::-1])
    grey = AugmentConfig(jitter_probability=0.0, grayscale_probability=1.0, solarize_probability=(1.0, 1.0, 1.0))
    expected = v2.functional.rgb_to_grayscale(torch.from_numpy(image[:, ::-1].copy()).permute(2, 0, 1), 3)
    difference = transformed_view(image, 0, 3, grey).astype(int) - expected.permute(1, 2, 0).numpy()
    assert np.abs(difference).max() <= 1
    config = AugmentConfig(jitter_probability=1.0)
    views = [transformed_view(image, seed, image_id, config) for seed, image_id in ((0, 3), (0, 4), (1, 3), (0, 3))]
    assert np.array_equal(views[0], views[3])
    assert not any(np.array_equal(views[0], other) for other in views[1:3])


def test_cells_centres_agree_with_the_positions_of_the_training() -> None:
    from glsd.geometry import positions

    geo = torch.tensor([0.0, 0.0, 96.0, 96.0, 96.0, 96.0, 0.0])
    torch.testing.assert_close(cell_centers((3, 7), 96), positions(geo, (3, 7)))
    flipped = geo.clone()
    flipped[6] = 1
    torch.testing.assert_close(flip_truth((3, 7), 96), positions(flipped, (3, 7)))


def test_a_result_has_a_row_for_each_pair_of_views() -> None:
    z = random_map(4, 3, 5, 6, 0)
    found = correspondence(z, z.flip(2), flip_truth((3, 5), 96), 96)
    assert isinstance(found, Correspondence)
    assert found.matched_xy.shape == found.truth.shape == (4, 3, 5, 2)
    assert found.similarity.shape == found.correct.shape == (4, 3, 5)
