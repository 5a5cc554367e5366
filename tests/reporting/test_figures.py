import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import PathPatch, Rectangle
from PIL import Image

from glsd.augment import Views, multicrop
from glsd.config import Config, load_config
from glsd.geometry import positions
from glsd.reporting import (
    MatchedPair,
    draw_crops,
    draw_matchings,
    draw_neighbours,
    geometric_pair,
    links,
    preview,
    save_figure,
    view_crops,
)

CONFIG = load_config("demo", {"augment.vertical_flip": 0.5, "augment.local_scale": (0.02, 0.2)})
TEACHER_GRID, STUDENT_GRID = (7, 5), (2, 3)


def photo(height: int = 90, width: int = 130) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 2 % 256, columns % 256, (rows + columns) % 256], axis=-1).astype(np.uint8)


def views(seed: int = 0, config: Config = CONFIG) -> Views:
    return multicrop(photo(), config.augment, seed, epoch=0, image_id=0)


def in_original(geo: np.ndarray, end: np.ndarray, side: int) -> tuple[float, float]:
    """Where pixel `end` (x, y) of a square crop of `side` pixels lies in the original image, by Algorithm 2."""
    left, top, right, bottom, _, _, flip = (float(value) for value in geo)
    x, y = (float(value) + 0.5 for value in end)  # from the crop's edge
    x = side - x if flip in (1, 3) else x
    y = side - y if flip in (2, 3) else y
    return left + x * (right - left) / side - 0.5, top + y * (bottom - top) / side - 0.5


def lines(axes: Axes) -> list[PathPatch]:
    return [patch for patch in axes.patches if isinstance(patch, PathPatch)]


def boxes(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def test_links_join_the_centres_of_matched_cells() -> None:
    # Cells of 112 px of the teacher's 224 px have centres 55.5 and 167.5; cells of 48 px of 96 have 23.5 and 71.5.
    pair = MatchedPair(
        np.zeros((224, 224, 3), np.uint8),
        np.zeros((96, 96, 3), np.uint8),
        (2, 2),
        (2, 2),
        np.array([3, 0, 0, 1]),
        np.ones(4, bool),
    )
    assert links(pair).tolist() == [
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
    for location, (teacher_end, student_end) in enumerate(links(pair)):
        teacher_xy = in_original(w.geo[teacher], teacher_end, pair.teacher.shape[0])
        student_xy = in_original(w.geo[student], student_end, pair.student.shape[0])
        assert teacher_xy == pytest.approx(e_t[pair.k_star[location]].tolist(), abs=1e-3)
        assert student_xy == pytest.approx(e_s[location].tolist(), abs=1e-3)
        nearest = min(math.dist(student_xy, candidate) for candidate in e_t.tolist())
        assert math.dist(student_xy, teacher_xy) == pytest.approx(nearest, abs=1e-3)


def test_a_pair_shows_the_crops_that_are_matched() -> None:
    w = views()
    pair = geometric_pair(w, 1, 3, TEACHER_GRID, STUDENT_GRID)
    assert np.array_equal(pair.teacher, w.global_crops[1])
    assert np.array_equal(pair.student, w.local_crops[0][1])
    assert (pair.teacher_name, pair.student_name) == ("teacher: global 2", "student: local 2")


def test_without_a_threshold_every_match_is_kept() -> None:
    pairs = [geometric_pair(views(seed), 0, 1, (7, 7), (7, 7), scale) for seed in range(5) for scale in (1.0, None)]
    assert not all(pair.keep.all() for pair in pairs[::2])
    assert all(pair.keep.all() for pair in pairs[1::2])


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000), student=st.sampled_from([1, 2]))
def test_lines_are_drawn_between_the_ends_of_kept_links(seed: int, student: int) -> None:
    pair = geometric_pair(views(seed), 0, student, TEACHER_GRID, STUDENT_GRID)
    (axes,) = draw_matchings([pair]).axes
    left, right = axes.images
    ends = []
    for line in lines(axes):
        start, _, end = line.get_path().vertices
        ends.append([in_pixels(left, start), in_pixels(right, end)])
    np.testing.assert_allclose(np.array(ends).reshape(-1, 2, 2), links(pair)[pair.keep], atol=1e-3)


def in_pixels(image: AxesImage, point: np.ndarray) -> list[float]:
    """A point of the axes in pixels of an image drawn in them."""
    x0, x1, y1, y0 = image.get_extent()
    height, width = image.get_array().shape[:2]
    return [(point[0] - x0) / (x1 - x0) * width - 0.5, (point[1] - y0) / (y1 - y0) * height - 0.5]


def test_boxes_are_those_of_geo_with_globals_thick_and_full_and_locals_thin_and_dashed() -> None:
    w = views()
    (axes,) = draw_crops([photo()], [w.geo]).axes
    drawn = {tuple(box.get_bbox().extents + 0.5): box for box in boxes(axes)}
    assert drawn.keys() == {tuple(geo[:4]) for geo in w.geo.astype(float)}
    for view, geo in enumerate(w.geo.astype(float)):
        box = drawn[tuple(geo[:4])]
        assert (box.get_linestyle() == "-") == (view < 2)
        assert (box.get_linewidth() > 2) == (view < 2)


def test_crops_stand_beside_their_image_in_the_order_of_the_views() -> None:
    w = views()
    figure = draw_crops([photo(), photo(60, 60)], [w.geo, w.geo], [view_crops(w), view_crops(w)])
    shown = [axes.images[0].get_array() for axes in figure.axes]
    expected = [photo(), *view_crops(w), photo(60, 60), *view_crops(w)]
    assert all(np.array_equal(a, b) for a, b in zip(shown, expected, strict=True))


@pytest.mark.parametrize("num_images", [1, 3, 5])
def test_every_image_of_a_grid_is_shown(num_images: int) -> None:
    figure = draw_crops([photo(90, 100 + index) for index in range(num_images)], [views().geo] * num_images)
    assert [axes.images[0].get_array().shape[1] for axes in figure.axes] == [100 + i for i in range(num_images)]


def test_right_and_wrong_neighbours_differ_by_more_than_colour() -> None:
    similarities = np.array([[0.91, 0.5]])
    figure = draw_neighbours([photo()], ["cat"], [[photo(), photo()]], [["cat", "dog"]], similarities)
    _, right, wrong = figure.axes
    assert (right.get_title(), wrong.get_title()) == ("✓ cat  0.91", "✗ dog  0.50")
    assert boxes(right)[0].get_linestyle() != boxes(wrong)[0].get_linestyle()


def test_a_preview_is_a_function_of_seed_epoch_and_image(tmp_path: Path) -> None:
    def content(**key: int) -> bytes:
        return save_figure(preview(photo(), CONFIG, **key), tmp_path / "preview.png").read_bytes()

    first = content(seed=0, epoch=0, image_id=0)
    assert content(seed=0, epoch=0, image_id=0) == first
    assert first not in (content(seed=1), content(epoch=1), content(image_id=1))


def test_a_preview_shows_the_matchings_that_training_makes() -> None:
    *_, global_global, global_local = preview(photo(), CONFIG, seed=3).axes
    w = views(3)
    pairs = [geometric_pair(w, 0, view, (3, 3), grid) for view, grid in enumerate([(3, 3)] + 4 * [(2, 2)], start=1)]
    assert len(lines(global_global)) == pairs[0].keep.sum()
    assert len(lines(global_local)) == max(pair.keep.sum() for pair in pairs[1:])


def test_a_preview_without_local_crops_shows_the_global_pair() -> None:
    config = CONFIG.with_overrides({"augment.local_sizes": (), "augment.num_local_crops": ()})
    figure = preview(photo(), config)
    assert [len(axes.images) for axes in figure.axes] == [1, 1, 1, 2]


def test_a_figure_that_cannot_be_drawn_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "figure.png"
    save_figure(Figure(), path)
    before = path.read_bytes()
    broken = Figure()
    broken.text(0, 0, r"$\frac{$")
    with pytest.raises(ValueError, match="frac"):
        save_figure(broken, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["figure.png"]


def test_pictures_have_200_dots_an_inch(tmp_path: Path) -> None:
    with Image.open(save_figure(Figure(figsize=(3, 2)), tmp_path / "figure.png")) as image:
        assert image.size == (600, 400)
