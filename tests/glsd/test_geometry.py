import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glsd.geometry import cell_diagonals, matching_threshold, positions
from tests import oracles

GRIDS = [(7, 7), (3, 3), (1, 1), (2, 5), (6, 1), (14, 14)]


@st.composite
def crops(draw: st.DrawFn) -> list[float]:
    """w_geo of a crop with whole edges in an image of up to 4000 pixels."""
    ul_x, ul_y = draw(st.integers(0, 3000)), draw(st.integers(0, 3000))
    width, height = draw(st.integers(1, 1000)), draw(st.integers(1, 1000))
    size = draw(st.sampled_from([96, 224]))
    return [float(v) for v in (ul_x, ul_y, ul_x + width, ul_y + height, size, size, draw(st.integers(0, 3)))]


grids = st.sampled_from(GRIDS)


def as_tensor(geo: list[float]) -> Tensor:
    return torch.tensor(geo, dtype=torch.float64)


@settings(deadline=None, max_examples=50)
@given(crops(), grids)
def test_positions_are_the_centres_of_patches_in_the_original_image(geo: list[float], grid: tuple[int, int]) -> None:
    expected = torch.tensor(oracles.positions(geo, *grid), dtype=torch.float64)
    torch.testing.assert_close(positions(as_tensor(geo), grid), expected, rtol=1e-12, atol=1e-9)


def test_a_patch_of_one_pixel_lies_at_that_pixels_coordinate() -> None:
    e = positions(torch.tensor([10.0, 20.0, 13.0, 22.0, 2.0, 3.0, 0.0]), (2, 3))
    assert e.tolist() == [[[10.0, 20.0], [11.0, 20.0], [12.0, 20.0]], [[10.0, 21.0], [11.0, 21.0], [12.0, 21.0]]]


@settings(deadline=None, max_examples=30)
@given(crops(), grids)
def test_flip_swaps_columns_of_positions(geo: list[float], grid: tuple[int, int]) -> None:
    upright, mirrored = as_tensor([*geo[:6], 0]), as_tensor([*geo[:6], 1])
    assert torch.equal(positions(mirrored, grid), positions(upright, grid).flip(-2))


@settings(deadline=None, max_examples=30)
@given(crops(), grids)
def test_vertical_flip_swaps_rows_of_positions(geo: list[float], grid: tuple[int, int]) -> None:
    horizontal, both = as_tensor([*geo[:6], 1]), as_tensor([*geo[:6], 3])
    assert torch.equal(positions(both, grid), positions(horizontal, grid).flip(-3))
    upright, vertical = as_tensor([*geo[:6], 0]), as_tensor([*geo[:6], 2])
    assert torch.equal(positions(vertical, grid), positions(upright, grid).flip(-3))


@settings(deadline=None, max_examples=30)
@given(crops(), grids, st.integers(-500, 500), st.integers(-500, 500))
def test_positions_move_with_the_crop(geo: list[float], grid: tuple[int, int], dx: int, dy: int) -> None:
    moved = as_tensor([geo[0] + dx, geo[1] + dy, geo[2] + dx, geo[3] + dy, *geo[4:]])
    shift = torch.tensor([dx, dy], dtype=torch.float64)
    torch.testing.assert_close(positions(moved, grid), positions(as_tensor(geo), grid) + shift, rtol=0, atol=1e-9)
    assert torch.equal(cell_diagonals(moved, grid), cell_diagonals(as_tensor(geo), grid))


@settings(deadline=None, max_examples=30)
@given(crops(), grids)
def test_positions_of_float32_crops_are_right_to_a_thousandth_of_a_pixel(
    geo: list[float], grid: tuple[int, int]
) -> None:
    e = positions(as_tensor(geo).float(), grid)
    torch.testing.assert_close(e.double(), positions(as_tensor(geo), grid), rtol=0, atol=1e-3)


@settings(deadline=None, max_examples=30)
@given(crops(), grids)
def test_positions_lie_within_the_crop(geo: list[float], grid: tuple[int, int]) -> None:
    e = positions(as_tensor(geo), grid)
    low, high = as_tensor(geo)[:2] - 0.5, as_tensor(geo)[2:4] - 0.5
    assert ((e > low) & (e < high)).all()


def test_positions_of_a_batch_are_those_of_each_view() -> None:
    geo = torch.tensor([[[0.0, 0, 50, 40, 224, 224, f], [10, 5, 70, 90, 224, 224, f]] for f in range(4)])
    e = positions(geo, (3, 2))
    assert e.shape == (4, 2, 3, 2, 2)
    for b in range(4):
        for v in range(2):
            assert torch.equal(e[b, v], positions(geo[b, v], (3, 2)))


@settings(deadline=None, max_examples=50)
@given(crops(), grids)
def test_cell_diagonal_is_the_distance_between_diagonal_neighbours(geo: list[float], grid: tuple[int, int]) -> None:
    found = cell_diagonals(as_tensor(geo), grid)
    assert found.item() == pytest.approx(oracles.cell_diagonal(geo, *grid), rel=1e-9)


@settings(deadline=None, max_examples=50)
@given(crops(), grids, crops(), grids)
def test_threshold_is_half_the_larger_diagonal(
    geo_s: list[float], grid_s: tuple[int, int], geo_t: list[float], grid_t: tuple[int, int]
) -> None:
    found = matching_threshold(as_tensor(geo_s), grid_s, as_tensor(geo_t), grid_t)
    assert found.item() == pytest.approx(oracles.threshold(geo_s, grid_s, geo_t, grid_t), rel=1e-9)


def test_threshold_broadcasts_students_against_teachers() -> None:
    geo = torch.tensor([[0.0, 0, 30, 40, 96, 96, 0], [0, 0, 60, 80, 96, 96, 0], [0, 0, 6, 8, 96, 96, 0]])
    s = matching_threshold(geo[:, None], (1, 1), geo[None, :2], (1, 1))
    assert s.tolist() == [[25.0, 50.0], [50.0, 50.0], [25.0, 50.0]]


def test_a_grid_without_locations_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(0, 7\)"):
        positions(torch.zeros(7), (0, 7))
    with pytest.raises(ValueError, match=r"\(3, 0\)"):
        cell_diagonals(torch.zeros(7), (3, 0))


def test_the_size_a_crop_is_resized_to_does_not_move_its_positions() -> None:
    box = [4.0, 8.0, 104.0, 58.0]
    small, large = torch.tensor([*box, 96, 96, 1]), torch.tensor([*box, 224, 224, 1])
    assert torch.equal(positions(small, (7, 7)), positions(large, (7, 7)))
    assert math.isclose(cell_diagonals(small, (5, 10)).item(), math.hypot(10, 10), rel_tol=1e-6)
