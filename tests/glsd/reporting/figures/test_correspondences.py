import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glsd.evaluation.correspondence import correspondence, flip_truth
from glsd.reporting.figures.correspondences import (
    Correspondences,
    draw_correspondences,
    top_correspondences,
)
from glsd.reporting.figures.pairs import Links
from tests.glsd.reporting.figures.drawn import ends_in_pixels, lines, photo

SIZE, GRID = 96, (3, 4)


def record(correct: list[bool] | None, seed: int = 0, title: str = "geometric") -> Correspondences:
    rng = np.random.default_rng(seed)
    num = 5 if correct is None else len(correct)
    locations = np.stack([rng.permutation(12)[:num], rng.integers(0, 10, num)], axis=1)
    links = Links((photo(96, 96), photo(60, 80)), (GRID, (2, 5)), locations, source=0)
    return Correspondences(links, None if correct is None else np.array(correct), title)


def test_links_join_the_centres_of_matched_cells() -> None:
    # Cells of 8 x 4 px of the first view's 16 x 8 px; one cell of 10 x 10 px is the second view.
    links = Links((photo(8, 16), photo(10, 10)), ((2, 2), (1, 1)), np.array([[1, 0], [2, 0]]), source=0)
    assert links.ends().tolist() == [[[11.5, 1.5], [4.5, 4.5]], [[3.5, 5.5], [4.5, 4.5]]]


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_lines_are_drawn_between_the_ends_of_links(seed: int) -> None:
    shown = record([True, False, False, True], seed)
    (axes,) = draw_correspondences([[shown]]).axes
    np.testing.assert_allclose(ends_in_pixels(axes), shown.links.ends(), atol=1e-3)


def test_right_and_wrong_matches_differ_in_colour_line_and_mark() -> None:
    (axes,) = draw_correspondences([[record([True, False, True])]]).axes
    drawn = [(line.get_linestyle(), line.get_edgecolor()) for line in lines(axes)]
    assert drawn[0] == drawn[2]
    assert drawn[0][0] == "-"
    assert drawn[1][0] != "-"
    assert drawn[0][1] != drawn[1][1]
    marks = [line.get_marker() for line in axes.lines if len(line.get_xdata()) == 1]
    assert marks == ["o", "o", "X", "X", "o", "o"]


def test_without_a_truth_no_match_is_said_to_be_right_or_wrong() -> None:
    figure = draw_correspondences([[record(None)]])
    assert {line.get_linestyle() for line in lines(figure.axes[0])} == {"-"}
    assert not figure.legends
    assert figure.axes[0].get_title(loc="right") == ""


@pytest.mark.parametrize(
    ("num_images", "num_models", "columns"), [(3, 1, 2), (1, 1, 1), (2, 2, 2), (2, 3, 3), (1, 4, 2), (2, 6, 3)]
)
def test_models_stand_in_columns_and_fold_where_they_would_be_too_small(
    num_images: int, num_models: int, columns: int
) -> None:
    rows = [
        [record([True, False], title=f"model {model}, image {image}") for model in range(num_models)]
        for image in range(num_images)
    ]
    axes = draw_correspondences(rows).axes
    assert [each.get_title(loc="left") for each in axes] == [each.title for row in rows for each in row]
    assert {each.get_title(loc="right") for each in axes} == {"1 of 2 right"}
    assert len({round(each.get_position().x0, 3) for each in axes}) == columns


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), num_top=st.sampled_from([1, 5, 100]))
def test_the_most_similar_matches_are_shown_as_they_were_measured(seed: int, num_top: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z_a, z_b = (torch.randn(2, *GRID, 4, generator=generator) for _ in range(2))
    found = correspondence(z_a, z_b, flip_truth(GRID, SIZE), SIZE, num_top)
    shown = top_correspondences(photo(SIZE, SIZE), photo(SIZE, SIZE), found, 1, GRID, "", num_top)
    cosine = torch.cosine_similarity(z_a[1].flatten(0, 1)[:, None], z_b[1].flatten(0, 1)[None], dim=-1)
    best = sorted(((max(row), -k) for k, row in enumerate(cosine.tolist())), reverse=True)[:num_top]
    assert shown.links.locations[:, 0].tolist() == [-k for _, k in best]
    for (source, matched), correct in zip(shown.links.locations, shown.correct, strict=True):
        assert matched == cosine[source].argmax()
        row, column = divmod(int(source), GRID[1])
        assert correct == (matched == row * GRID[1] + GRID[1] - 1 - column)
    assert shown.correct.mean() == pytest.approx(found.accuracy_top[1].item())


def test_a_location_without_a_true_one_is_not_shown() -> None:
    z = torch.eye(12).reshape(1, *GRID, 12)
    truth = flip_truth(GRID, SIZE)
    truth[0] = torch.nan
    found = correspondence(z, z.flip(2), truth, SIZE)
    shown = top_correspondences(photo(SIZE, SIZE), photo(SIZE, SIZE), found, 0, GRID, "", 15)
    assert shown.links.locations[:, 0].tolist() == list(range(4, 12))
    assert shown.correct.all()


def test_of_two_different_images_the_most_similar_matches_are_shown() -> None:
    z_a, z_b = torch.randn(2, 1, 7, 7, 4)
    found = correspondence(z_a, z_b, torch.full((7, 7, 2), torch.nan), SIZE)
    shown = top_correspondences(photo(SIZE, SIZE), photo(SIZE, SIZE), found, 0, (7, 7), "", 15)
    assert shown.correct is None
    assert shown.links.locations[:, 0].tolist() == found.similarity.flatten().argsort(descending=True)[:15].tolist()
