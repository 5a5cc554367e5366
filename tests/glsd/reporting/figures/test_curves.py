import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glsd.reporting.figures.curves import draw_collapse, draw_curves


def panels(figure: Figure) -> dict[str, Axes]:
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def curve(axes: Axes, label: str) -> list[tuple[float, float]]:
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return list(zip(line.get_xdata().tolist(), line.get_ydata().tolist(), strict=True))


def test_panels_hold_the_points_of_each_run() -> None:
    histories = {
        "geometric": {"k_star_distinct": ([10, 20], [0.5, 0.6]), "loss": ([10, 20], [9.0, 8.0])},
        "similarity": {"k_star_distinct": ([5, 10, 15], [0.4, 0.2, 0.02])},
    }
    figure = draw_collapse(histories, axis="epoch")
    drawn = panels(figure)
    assert list(drawn) == ["distinct k* / K", "loss"]
    assert curve(drawn["distinct k* / K"], "geometric") == [(10, 0.5), (20, 0.6)]
    assert curve(drawn["distinct k* / K"], "similarity") == [(5, 0.4), (10, 0.2), (15, 0.02)]
    assert curve(drawn["loss"], "geometric") == [(10, 9.0), (20, 8.0)]
    assert len(drawn["loss"].lines) == 1
    assert {axes.get_xlabel() for axes in figure.axes} == {"epoch"}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["geometric", "similarity"]


def test_output_entropies_are_held_against_the_uniform_distribution() -> None:
    names = ("entropy_global", "entropy_dense")
    drawn = panels(draw_collapse({"run": {name: ([1, 2], [0.9, 0.8]) for name in names}}))
    assert len(drawn) == 2
    for axes in drawn.values():
        assert [text.get_text() for text in axes.texts] == ["uniform"]
        assert [list(line.get_ydata()) for line in axes.lines if line.get_label() != "run"] == [[1.0, 1.0]]


def test_runs_differ_in_colour_line_style_and_mark() -> None:
    runs = {f"run {index}": {"loss": ([1, 2], [2.0, 1.0])} for index in range(7)}
    (axes,) = draw_collapse(runs).axes
    assert len({line.get_color() for line in axes.lines}) == 7
    assert len({line.get_marker() for line in axes.lines}) == 7
    neighbours = zip(axes.lines[:-1], axes.lines[1:], strict=True)
    assert all(a._dash_pattern != b._dash_pattern for a, b in neighbours)


def test_more_runs_than_can_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="8 runs cannot be told apart"):
        draw_collapse({f"run {index}": {"loss": ([1], [2.0])} for index in range(8)})


def test_where_nothing_was_measured_there_is_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="no run has any of k_star_entropy"):
        draw_collapse({"run": {}})
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_curves([{"step": 10}])


def test_a_value_that_was_not_finite_is_a_gap() -> None:
    (axes,) = draw_curves([{"step": 1, "loss": 3.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 2.0}]).axes
    assert np.isnan(axes.lines[0].get_ydata()).tolist() == [False, True, False]


def test_curves_are_those_of_the_metrics() -> None:
    metrics = [
        {"step": 0, "knn": 0.25},
        {"step": 10, "loss": 5.0, "loss_global": 6.0, "loss_local": 4.0, "lr": 1e-4, "images_per_s": 80.0},
        {"step": 20, "loss": 4.0, "loss_global": 5.0, "loss_local": 3.0, "lr": 2e-4, "images_per_s": 90.0, "knn": 0.5},
    ]
    drawn = panels(draw_curves(metrics))
    assert list(drawn) == ["loss", "k-NN accuracy (%)", "learning rate", "images per second"]
    assert curve(drawn["loss"], "loss") == [(10, 5.0), (20, 4.0)]
    assert curve(drawn["loss"], "global") == [(10, 6.0), (20, 5.0)]
    assert curve(drawn["loss"], "local") == [(10, 4.0), (20, 3.0)]
    assert curve(drawn["k-NN accuracy (%)"], "k-NN") == [(0, 25.0), (20, 50.0)]
    assert curve(drawn["images per second"], "images/s") == [(10, 80.0), (20, 90.0)]
    assert [text.get_text() for text in drawn["loss"].get_legend().get_texts()] == ["loss", "global", "local"]
