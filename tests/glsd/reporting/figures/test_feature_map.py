from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glsd.reporting.figures.canvas import save_figure
from glsd.reporting.figures.feature_map import draw_feature_map, principal_components


def features(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, dim)) * rng.uniform(0.1, 3, dim) + rng.normal(size=dim)).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(5, 40), dim=st.integers(3, 12), seed=st.integers(0, 10_000))
def test_principal_components_are_those_of_the_singular_value_decomposition(rows: int, dim: int, seed: int) -> None:
    x = features(rows, dim, seed)
    found = principal_components(x, 2)
    centred = x.astype(np.float64) - x.astype(np.float64).mean(0)
    u, sigma, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(found.scores), np.abs(u[:, :2] * sigma[:2]), atol=1e-5)
    np.testing.assert_allclose(found.explained, sigma[:2] ** 2 / (sigma**2).sum(), atol=1e-9)


def test_the_sign_of_a_component_is_that_of_its_largest_loading() -> None:
    # All variance lies along (1, -2), whose largest loading is negative: the axis is (-1, 2) / sqrt(5).
    x = np.array([[0.0, 0.0], [1.0, -2.0], [2.0, -4.0]])
    for rows in (x, x[::-1]):
        found = principal_components(rows, 1)
        np.testing.assert_allclose(found.scores[:, 0], rows @ [-1, 2] / np.sqrt(5) + np.sqrt(5), atol=1e-12)
        assert found.explained == pytest.approx([1.0])


def test_a_map_shows_every_row_with_its_class() -> None:
    x, labels = features(30, 6), np.arange(30) % 3
    (axes,) = draw_feature_map(x, labels, ["$a$", "_b", "c"]).axes
    unit = x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    expected = principal_components(unit, 2)
    for label, drawn in enumerate(axes.collections):
        np.testing.assert_allclose(drawn.get_offsets(), expected.scores[labels == label])
    names = axes.get_legend().get_texts()
    assert [text.get_text() for text in names] == ["$a$", "_b", "c"]
    assert not any(text.get_parse_math() for text in names)
    assert axes.get_xlabel() == f"component 1: {100 * expected.explained[0]:.1f} % of the variance"


def test_classes_differ_in_mark_or_colour_and_rare_ones_are_grey() -> None:
    labels = np.repeat(np.arange(14), np.arange(20, 6, -1))  # class 0 has 20 rows, class 13 has 7
    labels = np.random.default_rng(0).permutation(labels)
    (axes,) = draw_feature_map(features(len(labels), 6), labels).axes
    *own, rest = axes.collections
    assert [len(drawn.get_offsets()) for drawn in own] == list(range(20, 8, -1))
    looks = {(drawn.get_paths()[0].vertices.tobytes(), drawn.get_facecolor().tobytes()) for drawn in own}
    assert len(looks) == 12
    assert len({shape for shape, _ in looks}) == 12
    assert len(rest.get_offsets()) == 8 + 7
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == [*(str(label) for label in range(12)), "2 other classes"]


def test_equal_features_are_one_point(tmp_path: Path) -> None:
    figure = draw_feature_map(np.ones((5, 4), np.float32))
    save_figure(figure, tmp_path / "map.png")
    np.testing.assert_allclose(figure.axes[0].collections[0].get_offsets(), 0, atol=1e-12)


def test_large_sets_are_thinned_evenly() -> None:
    x = features(9001, 3)
    (axes,) = draw_feature_map(x, np.arange(9001) // 4501).axes
    assert [len(drawn.get_offsets()) for drawn in axes.collections] == [2000, 2000]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")  # UMAP's other form wants it
def test_umap_keeps_classes_apart_that_are_apart_and_repeats_itself() -> None:
    labels = np.repeat([0, 1], 15)
    x = np.eye(8)[labels] * 5 + np.random.default_rng(0).normal(size=(30, 8)) * 0.1
    (axes,), (again,) = (draw_feature_map(x, labels, method="umap").axes for _ in range(2))
    first, second = (np.asarray(drawn.get_offsets()) for drawn in axes.collections)
    within = max(np.linalg.norm(side - side.mean(0), axis=1).max() for side in (first, second))
    assert np.linalg.norm(first.mean(0) - second.mean(0)) > 2 * within
    assert np.array_equal(first, again.collections[0].get_offsets())
