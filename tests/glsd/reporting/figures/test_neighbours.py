import numpy as np

from glsd.reporting.figures.neighbours import draw_neighbours
from tests.glsd.reporting.figures.drawn import boxes, photo


def test_right_and_wrong_neighbours_differ_by_more_than_colour() -> None:
    similarities = np.array([[0.91, 0.5]])
    figure = draw_neighbours([photo()], ["cat"], [[photo(), photo()]], [["cat", "dog"]], similarities)
    _, right, wrong = figure.axes
    assert (right.get_title(), wrong.get_title()) == ("✓ cat  0.91", "✗ dog  0.50")
    assert boxes(right)[0].get_linestyle() != boxes(wrong)[0].get_linestyle()


def test_the_class_of_a_query_may_be_a_little_wider_than_its_image() -> None:
    figure = draw_neighbours(
        [photo()], ["possibly defective"], [[photo()] * 5], [["likely defective"] * 5], np.ones((1, 5))
    )
    assert figure.axes[0].get_title() == "possibly defective"
