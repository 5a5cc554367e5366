"""Training matchings, by geometry and by similarity (Fig. 3, 8-11)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from torch import Tensor

from glsd.augment.multicrop import Views
from glsd.losses.objective import geometric_matches
from glsd.matching import Matches, match_by_similarity
from glsd.reporting.figures.canvas import PALETTE, WIDTH, blank_figure, halo
from glsd.reporting.figures.crops import view_crops, view_names
from glsd.reporting.figures.pairs import Links, Look, draw_link, draw_pair, name_views, pair_height


class MatchedPair(NamedTuple):
    """A teacher view, a student view, and the teacher location that each student location is matched to."""

    links: Links
    """From the teacher's view to every location of the student's, in order."""
    keep: Bool[np.ndarray, " locations"]
    """Matches that count: 1{d < s} in Eq. 10."""
    names: tuple[str, str] = ("teacher", "student")
    rule: str = ""
    """What the locations are matched by."""


def geometric_pair(
    views: Views,
    teacher: int,
    student: int,
    teacher_grid: tuple[int, int],
    student_grid: tuple[int, int],
    threshold_scale: float | None = 1.0,
) -> MatchedPair:
    """The geometric matching (Eq. 6) of two views of one image, which training would use; None keeps every match."""
    geo_t, geo_s = torch.from_numpy(views.geo[[teacher, student], None, None])
    found = geometric_matches(geo_s, student_grid, geo_t, teacher_grid, threshold_scale)
    matches = Matches(*(field[0, 0, 0] for field in found))
    return _pair(views, (teacher, student), (teacher_grid, student_grid), matches, "by geometry")


def similarity_pair(
    views: Views,
    teacher: int,
    student: int,
    z_t: Float[Tensor, "height_t width_t dim"],
    z_s: Float[Tensor, "height_s width_s dim"],
) -> MatchedPair:
    """The similarity matching (Eq. 4) of two views of one image, from their dense representations."""
    matches = match_by_similarity(z_s.flatten(0, 1), z_t.flatten(0, 1))
    grids = (z_t.shape[0], z_t.shape[1]), (z_s.shape[0], z_s.shape[1])
    return _pair(views, (teacher, student), grids, matches, "by similarity")


def draw_matchings(pairs: Sequence[MatchedPair]) -> Figure:
    """Pairs of views, each location of the student's grid (right) linked to its teacher location (Fig. 3, 8-11).

    A location whose match does not count has a hollow mark and no line. Colours only tell matchings apart.
    """
    columns = min(len(pairs), 2)
    width = WIDTH / columns
    height = pair_height(width)
    figure = blank_figure(height * -(-len(pairs) // columns))
    for index, pair in enumerate(pairs):
        row, column = divmod(index, columns)
        draw_matching(figure, column * width, row * height, width, pair)
    return figure


def draw_matching(figure: Figure, left: float, top: float, width: float, pair: MatchedPair) -> None:
    """One matching at a place in inches; it takes `pair_height(width)`."""
    drawn = draw_pair(figure, left, top, width, pair.links)
    name_views(drawn.axes, pair.names, pair.rule)
    for location, ends in enumerate(drawn.ends):
        if not pair.keep[location]:
            drawn.axes.plot(
                *ends[1], "o", markersize=2.8, mfc="none", mec="white", mew=0.7, zorder=3,
                path_effects=halo(1.5, "#000000B0"),
            )  # fmt: skip
            continue
        row, column = divmod(location, pair.links.grids[1][1])
        draw_link(drawn, location, Look(PALETTE[(column + 3 * row) % len(PALETTE)]))


def _pair(
    views: Views, pair: tuple[int, int], grids: tuple[tuple[int, int], tuple[int, int]], matches: Matches, rule: str
) -> MatchedPair:
    crops, names = view_crops(views), view_names(len(views.geo))
    teacher, student = pair
    k_star = matches.k_star.cpu().numpy()
    links = Links((crops[teacher], crops[student]), grids, np.stack([k_star, np.arange(len(k_star))], axis=1), source=1)
    shown = f"teacher: {names[teacher]}", f"student: {names[student]}"
    return MatchedPair(links, matches.keep.cpu().numpy(), shown, rule)
