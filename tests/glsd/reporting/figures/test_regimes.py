import math
import statistics
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from glsd.reporting.figures.regimes import draw_comparison, draw_regimes
from glsd.reporting.tables import tidy_table

SETTING, REGIME = "objective.setting", "data.images_per_class"


def trial(setting: str, regime: int | None, seed: int, knn: float | None, **facts: Any) -> dict[str, Any]:
    measured = {"knn": knn, "accuracy": knn and knn / 2, "error_px": knn and 100 * knn, "knn_untrained": 0.125}
    ended = {"status": "finished", "verdict": "healthy"}
    return {SETTING: setting, REGIME: regime, "seed": seed} | measured | ended | facts


TRIALS = tidy_table(
    [
        trial("vanilla", None, 0, 0.75),
        trial("vanilla", 10, 0, 0.25),
        trial("vanilla", 10, 1, 0.375),
        trial("vanilla", 100, 0, 0.5),
        trial("similarity", 10, 0, 0.0625, verdict="collapsed"),
        trial("similarity", 100, 0, None, status="not finite", verdict=None),
        trial("similarity", None, 0, 0.625),
    ]
)


def panels(figure: Figure) -> dict[str, Axes]:
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def marks(axes: Axes) -> list[tuple[float, float, str, bool]]:
    """(x, y, mark, is filled) of the means."""
    found = []
    for container in axes.containers:
        (x,), (y,) = container[0].get_data()
        found.append((float(x), float(y), container[0].get_marker(), container[0].get_markerfacecolor() != "white"))
    return found


def dots(axes: Axes) -> np.ndarray:
    """Single trials, (n, 2); crosses are not among them."""
    scattered = [part for part in axes.collections if isinstance(part, PathCollection) and part.get_sizes()[0] < 10]
    return np.concatenate([np.asarray(part.get_offsets()) for part in scattered])


def crosses(axes: Axes) -> np.ndarray:
    scattered = [part for part in axes.collections if isinstance(part, PathCollection) and part.get_sizes()[0] > 10]
    return np.concatenate([np.asarray(part.get_offsets()) for part in scattered])


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_whiskers_are_one_standard_deviation_over_seeds() -> None:
    (axes, *_) = draw_regimes(TRIALS, unlimited=500.0).axes
    whiskers = [container[2][0].get_segments()[0] for container in axes.containers if container[2]]
    assert len(whiskers) == 1  # only one group has two seeds somewhere
    low, high = whiskers[0][:, 1]
    assert (low + high) / 2 == pytest.approx(31.25)
    assert (high - low) / 2 == pytest.approx(100 * statistics.stdev([0.25, 0.375]))


def test_figure_4_has_three_panels_over_a_logarithmic_axis_with_a_tick_for_each_regime() -> None:
    drawn = panels(draw_regimes(TRIALS, unlimited=500.0))
    assert list(drawn) == ["k-NN accuracy (%)", "correspondence accuracy (%)", "correspondence error (px)"]
    for axes in drawn.values():
        assert axes.get_xscale() == "log"
        assert axes.get_xticks().tolist() == [10, 100, 500]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "100", "all"]
        assert axes.get_xlabel() == "images per class (all: 500)"


def test_all_images_lie_beyond_the_largest_regime_where_nobody_says_how_many_they_are() -> None:
    (axes, *_) = draw_regimes(TRIALS).axes
    assert axes.get_xticks().tolist() == [10, 100, 200]
    assert axes.get_xlabel() == "images per class"


def test_marks_are_means_in_per_cent_near_their_tick_and_open_where_a_trial_collapsed() -> None:
    drawn = panels(draw_regimes(TRIALS, unlimited=500.0))
    heights = {"k-NN accuracy (%)": 100, "correspondence accuracy (%)": 50, "correspondence error (px)": 100}
    for title, factor in heights.items():
        found = marks(drawn[title])
        expected = [(10, 0.3125, "o"), (100, 0.5, "o"), (500, 0.75, "o"), (10, 0.0625, "s"), (500, 0.625, "s")]
        shown = [point for point in found if not math.isnan(point[1])]
        assert [(y, mark) for _, y, mark, _ in shown] == [(factor * mean, mark) for _, mean, mark in expected]
        assert all(x == pytest.approx(tick, rel=0.1) for (x, *_), (tick, *_) in zip(shown, expected, strict=True))
        assert [filled for *_, filled in shown] == [True, True, True, False, True]


def test_every_trial_is_a_dot_and_one_whose_loss_was_not_finite_a_cross() -> None:
    (axes, *_) = draw_regimes(TRIALS, unlimited=500.0).axes
    values = dots(axes)[:, 1]
    assert sorted(values[~np.isnan(values)].tolist()) == [6.25, 25, 37.5, 50, 62.5, 75]
    ((x, height),) = crosses(axes)
    assert x == pytest.approx(100, rel=0.15)
    assert 0 < height < 0.1  # of the axes, from below


def test_the_line_of_a_group_breaks_where_it_has_no_mean() -> None:
    (axes, *_) = draw_regimes(TRIALS, unlimited=500.0).axes
    (line,) = [line for line in axes.lines if line.get_linestyle() == "--" and len(line.get_xdata()) > 1]
    assert np.isnan(line.get_ydata()).tolist() == [False, True, False]


def test_the_untrained_backbone_is_a_level_of_k_nn_alone() -> None:
    drawn = panels(draw_regimes(TRIALS, unlimited=500.0))
    levels = {title: [line for line in axes.lines if line.get_linestyle() == ":"] for title, axes in drawn.items()}
    assert {title: len(lines) for title, lines in levels.items()} == {
        **{"k-NN accuracy (%)": 1, "correspondence accuracy (%)": 0, "correspondence error (px)": 0}
    }
    (level,) = levels["k-NN accuracy (%)"]
    assert level.get_ydata().tolist() == [12.5] * 3


def test_the_legend_explains_what_the_figure_has_and_no_more() -> None:
    assert legend_of(draw_regimes(TRIALS)) == ["vanilla", "similarity", "untrained", "collapsed", "NA"]
    healthy = TRIALS[:4].drop(columns="knn_untrained")
    assert legend_of(draw_regimes(healthy)) == ["vanilla"]


def test_any_numeric_axis_and_any_names_can_be_drawn() -> None:
    trials = tidy_table(
        [
            {"optim.base_lr": rate, "model.backbone": name, "knn": 0.5}
            for rate in (0.001, 0.002)
            for name in ("swin", "vit")
        ]
    )
    figure = draw_regimes(trials, x="optim.base_lr", group="model.backbone")
    (axes,) = figure.axes
    assert axes.get_xscale() == "linear"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.001", "0.002"]
    assert legend_of(figure) == ["swin", "vit"]


def test_no_limit_of_another_axis_is_none() -> None:
    trials = tidy_table([{"objective.threshold_scale": scale, SETTING: "geometric", "knn": 0.5} for scale in (1, None)])
    (axes,) = draw_regimes(trials, x="objective.threshold_scale").axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "none"]


def test_a_comparison_has_a_row_for_each_combination_and_a_mark_for_each_group() -> None:
    figure = draw_comparison(TRIALS, [SETTING, REGIME, "seed"])
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        *("images per class all", "images per class 10", "images per class 100")
    ]
    found = sorted((x, round(y), mark) for x, y, mark, _ in marks(axes) if not math.isnan(x))
    assert found == [(6.25, 1, "s"), (31.25, 1, "o"), (50.0, 2, "o"), (62.5, 0, "s"), (75.0, 0, "o")]
    ((_, row),) = crosses(axes)
    assert round(row) == 2
    assert axes.get_ylim() == (2.5, -0.5)  # the first on top


def test_a_comparison_without_groups_names_none() -> None:
    trials = tidy_table([{"model.backbone": name, "knn": 0.5, SETTING: "vanilla"} for name in ("swin", "vit")])
    figure = draw_comparison(trials, ["model.backbone"])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["swin", "vit"]
    assert not figure.legends


def test_where_there_is_nothing_to_draw_or_too_much_nothing_is_drawn() -> None:
    with pytest.raises(ValueError, match="no trial has any of knn, accuracy, error_px"):
        draw_regimes(TRIALS[5:6])
    with pytest.raises(ValueError, match="no trial has knn"):
        draw_comparison(TRIALS[5:6], [SETTING])
    many = tidy_table([trial(f"setting {index}", 10, 0, 0.5) for index in range(8)])
    with pytest.raises(ValueError, match="8 groups cannot be told apart"):
        draw_regimes(many)
