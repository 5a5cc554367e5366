import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glsd.reporting.figures.charts import Chart, Line, chart_svg, draw_charts
from glsd.reporting.figures.curves import draw_collapse, run_charts


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
    figure = draw_collapse(histories, "epoch")
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
        assert [text.get_text() for text in axes.texts] == ["uniform 1"]
        levels = [list(line.get_ydata()) for line in axes.lines if line.get_label() != "run"]
        assert levels == [[0.0, 0.0], [1.0, 1.0]]


def test_runs_differ_in_colour_line_style_and_mark() -> None:
    runs = {f"run {index}": {"loss": ([1, 2], [2.0, 1.0])} for index in range(7)}
    (axes,) = draw_collapse(runs).axes
    assert len({line.get_color() for line in axes.lines}) == 7
    assert len({line.get_marker() for line in axes.lines}) == 7
    neighbours = zip(axes.lines[:-1], axes.lines[1:], strict=True)
    assert all(a._dash_pattern != b._dash_pattern for a, b in neighbours)


def test_more_runs_than_can_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="8 groups cannot be told apart"):
        draw_collapse({f"run {index}": {"loss": ([1], [2.0])} for index in range(8)})


def test_where_nothing_was_measured_there_is_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_collapse({"run": {}})
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_charts(run_charts([{"step": 10}]).training)
    with pytest.raises(ValueError, match="'loss' has no finite value"):
        chart_svg(Chart("loss", [Line("", [0.0, 1.0], [None, None])]))


def test_a_value_that_was_not_finite_is_a_gap_and_a_point_between_two_gaps_has_a_mark() -> None:
    (axes,) = draw_charts(
        [Chart("loss", [Line("", range(24), [None if x in (20, 22) else 1.0 for x in range(24)])])]
    ).axes
    (line,) = axes.lines
    assert np.flatnonzero(np.isnan(line.get_ydata())).tolist() == [20, 22]
    assert 21 in line.get_markevery()


METRICS = [
    {"step": 0, "knn": 0.25},
    {"step": 10, "loss": 5.0, "loss_global": 6.0, "loss_local": 4.0, "lr": 1e-4, "images_per_s": 80.0},
    {"step": 20, "loss": 4.0, "loss_global": 5.0, "loss_local": 3.0, "lr": 2e-4, "images_per_s": 90.0, "knn": 0.5},
]


def test_curves_are_those_of_the_metrics() -> None:
    charts = run_charts(METRICS)
    drawn = panels(draw_charts([*charts.training, *charts.others]))
    assert list(drawn) == ["Loss", "k-NN accuracy, %", "Images per second", "Learning rate"]
    assert curve(drawn["Loss"], "total") == [(10, 5.0), (20, 4.0)]
    assert curve(drawn["Loss"], "global") == [(10, 6.0), (20, 5.0)]
    assert curve(drawn["Loss"], "local") == [(10, 4.0), (20, 3.0)]
    assert curve(drawn["k-NN accuracy, %"], "teacher") == [(0, 25.0), (20, 50.0)]
    assert [line.get_ydata().tolist() for line in drawn["Images per second"].lines] == [[80.0, 90.0]]
    assert [text.get_text() for text in drawn["Loss"].texts] == ["total 4", "global 5", "local 3"]
    assert {axes.get_xlabel() for axes in drawn.values()} == {"step"}


def test_curves_lie_over_epochs_where_these_are_known() -> None:
    charts = run_charts([METRICS[0], METRICS[1] | {"epoch": 2.0}, METRICS[2] | {"epoch": 4.0}])
    drawn = panels(draw_charts(charts.training))
    assert curve(drawn["k-NN accuracy, %"], "teacher") == [(0, 25.0), (4, 50.0)]
    assert {axes.get_xlabel() for axes in drawn.values()} == {"epoch"}


def test_every_trial_has_a_curve_that_looks_like_its_group() -> None:
    charts = [
        Chart("images per class 10", [Line("vanilla", [0, 1], [1.0, 2.0]), Line("similarity", [0, 1], [3.0, None])]),
        Chart("images per class 20", [Line("similarity", [0, 1], [5.0, 6.0]), Line("similarity", [0, 2], [7.0, 8.0])]),
    ]
    figure = draw_charts(charts, ["vanilla", "similarity"])
    first, second = panels(figure).values()
    assert [line.get_ydata().tolist() for line in second.lines] == [[5, 6], [7, 8]]
    assert np.isnan(first.lines[1].get_ydata()).tolist() == [False, True]
    looks = [(line.get_color(), line.get_linestyle(), line.get_marker()) for line in (*first.lines, *second.lines)]
    assert looks[1] == looks[2] == looks[3]
    assert all(one != other for one, other in zip(looks[0], looks[1], strict=True))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["vanilla", "similarity"]
    assert not first.texts


def band(axes: Axes) -> np.ndarray:
    """Corners (x, y) of the only band, without the repeated first and last ones."""
    (area,) = axes.collections
    return area.get_paths()[0].vertices


def test_a_long_curve_is_thinned_to_means_within_the_range_of_what_they_stand_for() -> None:
    y = np.random.default_rng(0).normal(size=10_000)
    y[5000] = 9.0
    (axes,) = draw_charts([Chart("loss", [Line("", [*map(float, range(len(y)))], y.tolist())])]).axes
    means = axes.lines[0].get_ydata()
    assert 100 < len(means) <= 240
    assert means.mean() == pytest.approx(y.mean(), abs=0.05)
    assert np.abs(means).max() < 2
    assert band(axes)[:, 1].max() == 9.0


def test_errors_are_a_band_around_the_curve() -> None:
    (axes,) = draw_charts([Chart("k-NN", [Line("", [0.0, 1.0], [60.0, 70.0], errors=[2.0, 4.0])])]).axes
    assert {(x, y) for x, y in band(axes).tolist()} >= {(0, 58), (0, 62), (1, 66), (1, 74)}


values = st.floats(-1e4, 1e4).map(lambda value: round(value, 3))


@settings(max_examples=30, deadline=None)
@given(ends=st.lists(values, min_size=1, max_size=8))
def test_labels_of_a_chart_do_not_lie_on_each_other(ends: list[float]) -> None:
    lines = [Line(f"line {index}", [0.0, 1.0], [0.0, end]) for index, end in enumerate(ends[:4])]
    levels = [(f"level {index}", level) for index, level in enumerate(ends[4:])]
    svg = chart_svg(Chart("many", lines, levels))
    heights = [float(y) for y in re.findall(r'<text [^>]*y="([-\d.]+)"[^>]*>l', svg)]
    assert len(heights) == len(ends)
    assert all(0 < height < 140 for height in heights)
    assert all(below - above > 7.5 for above, below in zip(sorted(heights), sorted(heights)[1:], strict=False))


def test_a_chart_of_a_page_has_the_colours_of_the_page_and_names_its_values() -> None:
    svg = chart_svg(Chart("loss", [Line("total", [0.0, 1.0, 2.0], [6.0, None, 4.0])]))
    assert re.findall(r"<title>([^<]*)</title>", svg) == ["0: 6", "2: 4"]
    assert not re.search(r"#[0-9a-f]{6}|url\(|<style", re.sub(r'href="#\w+"|id="\w+"', "", svg))
    assert {"var(--c0)", "var(--ink)", "var(--rule)", "var(--card)"} <= set(re.findall(r"var\(--\w+\)", svg))
    assert 'aria-label="loss: total 4"' in svg
