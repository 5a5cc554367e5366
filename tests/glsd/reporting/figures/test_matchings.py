import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glsd.augment.multicrop import Views
from glsd.geometry import positions
from glsd.reporting.figures.matchings import draw_matchings, geometric_pair, similarity_pair
from glsd.reporting.figures.pairs import Links
from tests.glsd.reporting.figures.drawn import ends_in_pixels, views

TEACHER_GRID, STUDENT_GRID = (7, 5), (2, 3)


def in_original(geo: np.ndarray, end: np.ndarray, side: int) -> tuple[float, float]:
    """Where pixel `end` (x, y) of a square crop of `side` pixels lies in the original image, by Algorithm 2."""
    left, top, right, bottom, _, _, flip = (float(value) for value in geo)
    x, y = (float(value) + 0.5 for value in end)  # from the crop's edge
    x = side - x if flip in (1, 3) else x
    y = side - y if flip in (2, 3) else y
    return left + x * (right - left) / side - 0.5, top + y * (bottom - top) / side - 0.5


def test_links_join_the_centres_of_matched_cells() -> None:
    # Cells of 112 px of the teacher's 224 px have centres 55.5 and 167.5; cells of 48 px of 96 have 23.5 and 71.5.
    links = Links(
        (np.zeros((224, 224, 3), np.uint8), np.zeros((96, 96, 3), np.uint8)),
        ((2, 2), (2, 2)),
        np.array([[3, 0], [0, 1], [0, 2], [1, 3]]),
        source=1,
    )
    assert links.ends().tolist() == [
        [[167.5, 167.5], [23.5, 23.5]],
        [[55.5, 55.5], [71.5, 23.5]],
        [[55.5, 55.5], [23.5, 71.5]],
        [[167.5, 55.5], [71.5, 71.5]],
    ]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), teacher=st.integers(0, 1), student=st.integers(0, 5))
def test_both_ends_of_a_link_lie_where_positions_say_in_the_original(seed: int, teacher: int, student: int) -> None:
    w = views(seed)
    pair = geometric_pair(w, teacher, student, TEACHER_GRID, STUDENT_GRID)
    geo = torch.from_numpy(w.geo)
    e_t = positions(geo[teacher], TEACHER_GRID).flatten(0, 1)
    e_s = positions(geo[student], STUDENT_GRID).flatten(0, 1)
    for location, (teacher_end, student_end) in enumerate(pair.links.ends()):
        teacher_xy = in_original(w.geo[teacher], teacher_end, pair.links.views[0].shape[0])
        student_xy = in_original(w.geo[student], student_end, pair.links.views[1].shape[0])
        assert teacher_xy == pytest.approx(e_t[pair.links.locations[location, 0]].tolist(), abs=1e-3)
        assert student_xy == pytest.approx(e_s[location].tolist(), abs=1e-3)
        nearest = min(math.dist(student_xy, candidate) for candidate in e_t.tolist())
        assert math.dist(student_xy, teacher_xy) == pytest.approx(nearest, abs=1e-3)


def test_geometric_links_of_a_crop_and_its_mirror_image_are_mirrored() -> None:
    crops = np.zeros((2, 96, 96, 3), np.uint8)
    geo = np.array([[20, 10, 116, 106, 96, 96, 0], [20, 10, 116, 106, 96, 96, 1]], np.float32)
    pair = geometric_pair(Views(crops, [], geo, np.zeros((2, 12), np.float32)), 0, 1, (3, 3), (3, 3))
    assert pair.keep.all()
    teacher, student = pair.links.ends().transpose(1, 2, 0)  # (x, y) of each
    np.testing.assert_allclose(teacher, [95 - student[0], student[1]], atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_similarity_links_lead_to_the_most_similar_teacher_location(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z_t, z_s = (torch.randn(*grid, 4, generator=generator) for grid in (TEACHER_GRID, STUDENT_GRID))
    pair = similarity_pair(views(), 0, 2, z_t, z_s)
    assert pair.links.grids == (TEACHER_GRID, STUDENT_GRID)
    ends = pair.links.ends()
    for row in range(STUDENT_GRID[0]):
        for column in range(STUDENT_GRID[1]):
            a = z_s[row, column].tolist()
            best, at = -math.inf, (0, 0)
            for row_t in range(TEACHER_GRID[0]):
                for column_t in range(TEACHER_GRID[1]):
                    b = z_t[row_t, column_t].tolist()
                    cosine = sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
                    if cosine > best:
                        best, at = cosine, (row_t, column_t)
            teacher_end, student_end = ends[row * STUDENT_GRID[1] + column].tolist()
            height, width = pair.links.views[0].shape[:2]
            expected = (at[1] + 0.5) * width / TEACHER_GRID[1] - 0.5, (at[0] + 0.5) * height / TEACHER_GRID[0] - 0.5
            assert teacher_end == pytest.approx(expected, abs=1e-3)
            height, width = pair.links.views[1].shape[:2]
            expected = (column + 0.5) * width / STUDENT_GRID[1] - 0.5, (row + 0.5) * height / STUDENT_GRID[0] - 0.5
            assert student_end == pytest.approx(expected, abs=1e-3)


def test_by_similarity_every_match_counts() -> None:
    pair = similarity_pair(views(), 0, 1, torch.randn(3, 3, 8), torch.randn(3, 3, 8))
    assert len(ends_in_pixels(draw_matchings([pair]).axes[0])) == 9


def test_a_pair_shows_the_crops_that_are_matched() -> None:
    w = views()
    z_t, z_s = torch.randn(*TEACHER_GRID, 4), torch.randn(*STUDENT_GRID, 4)
    by_geometry = geometric_pair(w, 1, 3, TEACHER_GRID, STUDENT_GRID)
    by_similarity = similarity_pair(w, 1, 3, z_t, z_s)
    for pair in (by_geometry, by_similarity):
        assert np.array_equal(pair.links.views[0], w.global_crops[1])
        assert np.array_equal(pair.links.views[1], w.local_crops[0][1])
    words = [{text.get_text() for text in axes.texts} for axes in draw_matchings([by_geometry, by_similarity]).axes]
    assert words == [{"teacher: global 2", "student: local 2", f"by {name}"} for name in ("geometry", "similarity")]


def test_without_a_threshold_every_match_is_kept() -> None:
    pairs = [geometric_pair(views(seed), 0, 1, (7, 7), (7, 7), scale) for seed in range(5) for scale in (1.0, None)]
    assert not all(pair.keep.all() for pair in pairs[::2])
    assert all(pair.keep.all() for pair in pairs[1::2])


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000), student=st.sampled_from([1, 2]))
def test_lines_are_drawn_between_the_ends_of_kept_links(seed: int, student: int) -> None:
    pair = geometric_pair(views(seed), 0, student, TEACHER_GRID, STUDENT_GRID)
    (axes,) = draw_matchings([pair]).axes
    np.testing.assert_allclose(ends_in_pixels(axes), pair.links.ends()[pair.keep], atol=1e-3)
