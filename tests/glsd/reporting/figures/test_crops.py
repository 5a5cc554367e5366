import numpy as np
import pytest

from glsd.reporting.figures.canvas import blank_figure
from glsd.reporting.figures.crops import crops_row_height, draw_crops, draw_crops_row, view_crops
from tests.glsd.reporting.figures.drawn import boxes, photo, views


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
    figure = blank_figure(crops_row_height(len(w.geo)))
    draw_crops_row(figure, 0.0, photo(), w.geo, view_crops(w))
    shown = [axes.images[0].get_array() for axes in figure.axes]
    assert all(np.array_equal(a, b) for a, b in zip(shown, [photo(), *view_crops(w)], strict=True))


@pytest.mark.parametrize("num_images", [1, 3, 5])
def test_every_image_of_a_grid_is_shown(num_images: int) -> None:
    figure = draw_crops([photo(90, 100 + index) for index in range(num_images)], [views().geo] * num_images)
    assert [axes.images[0].get_array().shape[1] for axes in figure.axes] == [100 + i for i in range(num_images)]
