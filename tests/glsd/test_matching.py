import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glsd.geometry import matching_threshold, positions
from glsd.matching import match_by_geometry, match_by_similarity
from tests import oracles
from tests.glsd.test_geometry import as_tensor, crops

grids = st.sampled_from([(7, 7), (3, 3), (2, 4)])


def features(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flat(e: list[list[oracles.Point]]) -> list[oracles.Point]:
    return [point for row in e for point in row]


@settings(deadline=None, max_examples=40)
@given(crops(), grids, crops(), grids)
def test_each_student_location_is_matched_to_the_nearest_teacher_location(
    geo_s: list[float], grid_s: tuple[int, int], geo_t: list[float], grid_t: tuple[int, int]
) -> None:
    e_s, e_t = flat(oracles.positions(geo_s, *grid_s)), flat(oracles.positions(geo_t, *grid_t))
    s = oracles.threshold(geo_s, grid_s, geo_t, grid_t)
    matches = match_by_geometry(positions(as_tensor(geo_s), grid_s), positions(as_tensor(geo_t), grid_t))
    for k, (_, distance) in enumerate(oracles.nearest(e_s, e_t)):
        # Of equally near locations rounding may choose; the distance to the chosen one must be the smallest.
        assert math.dist(e_s[k], e_t[int(matches.k_star[k])]) == pytest.approx(distance, abs=1e-9)
        assert matches.distance[k].item() == pytest.approx(distance, abs=1e-9)
        if not math.isclose(distance, s, rel_tol=1e-9):
            assert matches.keep[k].item() == (distance < s)


@settings(deadline=None, max_examples=20)
@given(crops(), grids)
def test_identical_crops_match_identically_at_distance_zero(geo: list[float], grid: tuple[int, int]) -> None:
    e = positions(as_tensor(geo).float(), grid)
    matches = match_by_geometry(e, e)
    assert matches.k_star.tolist() == list(range(grid[0] * grid[1]))
    assert matches.distance.tolist() == [0.0] * (grid[0] * grid[1])
    assert matches.keep.all()


@settings(deadline=None, max_examples=20)
@given(crops(), grids, crops(), grids, st.integers(0, 3), st.integers(0, 3))
def test_flips_reorder_matches_without_changing_their_distances(
    geo_s: list[float],
    grid_s: tuple[int, int],
    geo_t: list[float],
    grid_t: tuple[int, int],
    flip_s: int,
    flip_t: int,
) -> None:
    def distances(f_s: int, f_t: int) -> Tensor:
        e_s = positions(as_tensor([*geo_s[:6], f_s]), grid_s)
        e_t = positions(as_tensor([*geo_t[:6], f_t]), grid_t)
        return match_by_geometry(e_s, e_t).distance.unflatten(-1, grid_s)

    flipped = distances(flip_s, flip_t)
    if flip_s % 2:
        flipped = flipped.flip(-1)
    if flip_s >= 2:
        flipped = flipped.flip(-2)
    assert torch.equal(flipped, distances(0, 0))


@settings(deadline=None, max_examples=20)
@given(crops(), grids, crops(), grids, st.integers(-300, 300), st.integers(-300, 300))
def test_moving_both_crops_together_changes_no_distance(
    geo_s: list[float], grid_s: tuple[int, int], geo_t: list[float], grid_t: tuple[int, int], dx: int, dy: int
) -> None:
    shift = torch.tensor([dx, dy, dx, dy, 0, 0, 0], dtype=torch.float64)
    before = match_by_geometry(positions(as_tensor(geo_s), grid_s), positions(as_tensor(geo_t), grid_t))
    after = match_by_geometry(positions(as_tensor(geo_s) + shift, grid_s), positions(as_tensor(geo_t) + shift, grid_t))
    torch.testing.assert_close(after.distance, before.distance, rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(crops(), grids, crops(), grids)
def test_disjoint_crops_keep_nothing(
    geo_s: list[float], grid_s: tuple[int, int], geo_t: list[float], grid_t: tuple[int, int]
) -> None:
    # One cell's diagonal of clear space between the two boxes.
    gap = 2 * matching_threshold(as_tensor(geo_s), grid_s, as_tensor(geo_t), grid_t).item()
    moved = as_tensor(geo_t)
    moved[[0, 2]] += geo_s[2] - geo_t[0] + gap
    assert not match_by_geometry(positions(as_tensor(geo_s), grid_s), positions(moved, grid_t)).keep.any()


def test_a_match_at_exactly_the_threshold_is_dropped() -> None:
    geo = torch.tensor([0.0, 0, 112, 112, 96, 96, 0])
    shifted = torch.tensor([8.0, 8, 120, 120, 96, 96, 0])  # half a cell of 16 px along both axes
    e_s, e_t = positions(shifted, (7, 7)), positions(geo, (7, 7))
    matches = match_by_geometry(e_s, e_t)
    assert matches.distance.unique().tolist() == [torch.tensor(128.0).sqrt().item()]
    assert not matches.keep.any()
    assert match_by_geometry(e_s, e_t, threshold=math.sqrt(128) + 1e-5).keep.all()


def test_of_equally_near_teacher_locations_the_first_is_taken() -> None:
    e_s = torch.tensor([[[1.0, 1.0]]])
    e_t = torch.tensor([[[0.0, 0.0], [2.0, 0.0]], [[0.0, 2.0], [2.0, 2.0]]])
    assert match_by_geometry(e_s, e_t, threshold=10.0).k_star.tolist() == [0]
    assert match_by_geometry(e_s, e_t[:, [1, 0]], threshold=10.0).k_star.tolist() == [0]


@settings(deadline=None, max_examples=20)
@given(crops(), grids, crops(), grids)
def test_default_threshold_is_the_one_derived_from_geo(
    geo_s: list[float], grid_s: tuple[int, int], geo_t: list[float], grid_t: tuple[int, int]
) -> None:
    e_s, e_t = positions(as_tensor(geo_s), grid_s), positions(as_tensor(geo_t), grid_t)
    s = matching_threshold(as_tensor(geo_s), grid_s, as_tensor(geo_t), grid_t)
    by_default, by_geo = match_by_geometry(e_s, e_t), match_by_geometry(e_s, e_t, s)
    near = torch.isclose(by_geo.distance, s, rtol=1e-9)
    assert torch.equal(by_default.keep[~near], by_geo.keep[~near])


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (7, 1)])
def test_a_grid_without_diagonal_neighbours_needs_a_threshold(grid: tuple[int, int]) -> None:
    geo = torch.tensor([0.0, 0, 64, 64, 96, 96, 0])
    e, other = positions(geo, grid), positions(geo, (7, 7))
    for pair in ((e, other), (other, e)):
        with pytest.raises(ValueError, match=f"{grid[0]} x {grid[1]}.*threshold="):
            match_by_geometry(*pair)
    s = matching_threshold(geo, grid, geo, (7, 7))
    assert match_by_geometry(e, other, s).keep.all()


def test_an_infinite_threshold_keeps_every_match() -> None:
    geo = torch.tensor([0.0, 0, 64, 64, 96, 96, 0])
    far = torch.tensor([3000.0, 3000, 3064, 3064, 96, 96, 0])
    assert match_by_geometry(positions(geo, (3, 3)), positions(far, (7, 7)), threshold=math.inf).keep.all()


def test_matches_of_a_batch_are_those_of_each_pair() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 60, (2, 3, 2), generator=generator)
    sides = torch.randint(40, 90, (2, 3, 2), generator=generator)
    geo = torch.cat((corners, corners + sides, sides, torch.randint(0, 4, (2, 3, 1), generator=generator)), -1).float()
    e_s, e_t = positions(geo, (3, 2)), positions(geo[:, :2], (4, 5))
    s = matching_threshold(geo[:, :, None], (3, 2), geo[:, None, :2], (4, 5))
    together = match_by_geometry(e_s[:, :, None], e_t[:, None], s)
    assert together.k_star.shape == together.distance.shape == together.keep.shape == (2, 3, 2, 6)
    for b in range(2):
        for v in range(3):
            for t in range(2):
                alone = match_by_geometry(e_s[b, v], e_t[b, t], s[b, v, t])
                for part, whole in zip(alone, together, strict=True):
                    assert torch.equal(part, whole[b, v, t])


@pytest.mark.parametrize("shapes", [((9, 5), (49, 5)), ((49, 8), (49, 8)), ((6, 3), (1, 3))])
def test_each_student_location_is_matched_to_the_most_similar_teacher_location(
    shapes: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    z_s, z_t = features(0, *shapes[0]), features(1, *shapes[1])
    matches = match_by_similarity(z_s, z_t)
    assert matches.k_star.tolist() == oracles.most_similar(z_s.tolist(), z_t.tolist())
    expected = 1 - torch.cosine_similarity(z_s, z_t[matches.k_star], dim=-1)
    torch.testing.assert_close(matches.distance, expected, rtol=0, atol=1e-12)
    assert matches.keep.all()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.floats(1e-3, 1e3))
def test_similarity_matches_do_not_depend_on_the_scale_of_features(seed: int, scale: float) -> None:
    z_s, z_t = features(seed, 2, 9, 4), features(seed + 1, 2, 16, 4)
    before, after = match_by_similarity(z_s, z_t), match_by_similarity(z_s * scale, z_t / scale)
    assert torch.equal(before.k_star, after.k_star)
    torch.testing.assert_close(before.distance, after.distance, rtol=0, atol=1e-12)


def test_collapsed_features_match_the_first_teacher_location() -> None:
    assert match_by_similarity(torch.ones(9, 4), torch.ones(49, 4)).k_star.tolist() == [0] * 9


def test_similarities_are_in_float32_under_autocast() -> None:
    z_s, z_t = features(0, 49, 64).float(), features(1, 49, 64).float()
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = match_by_similarity(z_s, z_t)
    for part, expected in zip(under_autocast, match_by_similarity(z_s, z_t), strict=True):
        assert torch.equal(part, expected)


def test_nothing_in_a_match_carries_a_gradient() -> None:
    z = features(0, 4, 3).requires_grad_()
    geo = torch.tensor([0.0, 0, 64, 64, 96, 96, 0], requires_grad=True)
    e = positions(geo, (2, 2))
    for matches in (match_by_similarity(z, z), match_by_geometry(e, e)):
        assert not any(part.requires_grad for part in matches)
