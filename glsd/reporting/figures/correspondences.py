"""Correspondences of two augmentations for several models side by side (Fig. 5), and of two images (Fig. 12).

Whether a match is right is for `glsd.evaluation` to say.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from glsd.evaluation.correspondence import Correspondence
from glsd.reporting.figures import canvas
from glsd.reporting.figures.pairs import Links, Look, draw_link, draw_pair, pair_height

_RIGHT, _WRONG = Look(canvas.BLUE, outline="#FFFFFFC0"), Look(canvas.ORANGE, canvas.DASHED, "X")


class Correspondences(NamedTuple):
    """Some locations of a view, and the location of another view that a model finds most similar to each."""

    links: Links
    correct: Bool[np.ndarray, " links"] | None
    """Whether the match is the true one; None where nobody knows, as between different images."""
    title: str
    """The model."""


def top_correspondences(
    view_1: canvas.Image,
    view_2: canvas.Image,
    found: Correspondence,
    index: int,
    grid_2: tuple[int, int],
    title: str,
    num_top: int = 10,
) -> Correspondences:
    """The most similar matches of pair `index` of a measured batch: those that its `accuracy_top` of as many rests on.

    Locations without a true one are left out, unless none has one, as between different images (Fig. 12: 15 matches).
    """
    similarity, correct = found.similarity[index].flatten().cpu(), found.correct[index].flatten().cpu()
    known = correct.isfinite()
    shown = known if known.any() else ~known
    ranked = similarity.where(shown, -torch.inf).sort(descending=True, stable=True).indices
    order = ranked[: min(num_top, int(shown.sum()))]
    cells = torch.tensor(grid_2[::-1]) / torch.tensor(view_2.shape[1::-1])  # per pixel, along x and y
    column, row = ((found.matched_xy[index].flatten(0, 1)[order].cpu() + 0.5) * cells).long().unbind(-1)
    grids = (found.similarity.shape[1], found.similarity.shape[2]), grid_2
    locations = np.stack([order.numpy(), (row * grid_2[1] + column).numpy()], axis=1)
    links = Links((view_1, view_2), grids, locations, source=0)
    return Correspondences(links, correct[order].bool().numpy() if known.any() else None, title)


def draw_correspondences(rows: Sequence[Sequence[Correspondences]]) -> Figure:
    """Images in rows, models in columns (Fig. 5, 12); more than three models fold, and so do the images of one model.

    A right match is a full blue line, a wrong one dashed and orange with crosses at its ends. Where no truth is known,
    colours only tell matches apart.
    """
    num_models = len(rows[0])
    columns = min(2, len(rows)) if num_models == 1 else math.ceil(num_models / math.ceil(num_models / 3))
    records = [record for row in rows for record in row]
    lines = [records] if num_models == 1 else rows
    bands = [line[first : first + columns] for line in lines for first in range(0, len(line), columns)]
    width = canvas.WIDTH / columns
    height = pair_height(width)
    has_truth = any(record.correct is not None for record in records)
    figure = canvas.blank_figure(height * len(bands) + has_truth * canvas.TITLE)
    for band, shown in enumerate(bands):
        for column, record in enumerate(shown):
            _draw(figure, column * width, band * height, width, record)
    if has_truth:
        keys = [
            Line2D([], [], color=look.color, linestyle=look.linestyle, marker=look.mark, markersize=4, linewidth=1.2)
            for look in (_RIGHT, _WRONG)
        ]
        canvas.legend(figure, keys, ("right", "wrong"), canvas.WIDTH / 2, loc="lower center", ncols=2, handlelength=4)
    return figure


def _draw(figure: Figure, left: float, top: float, width: float, record: Correspondences) -> None:
    pair = draw_pair(figure, left, top, width, record.links)
    count = "" if record.correct is None else f"{record.correct.sum()} of {len(record.correct)} right"
    room = width - 2 * canvas.MARGIN - 0.07 * len(count)
    canvas.heading(pair.axes, canvas.shortened(record.title, room), weight="bold", loc="left")
    canvas.heading(pair.axes, count, loc="right")
    for index in range(len(pair.ends)):
        look = Look(canvas.PALETTE[index % len(canvas.PALETTE)])
        if record.correct is not None:
            look = _RIGHT if record.correct[index] else _WRONG
        draw_link(pair, index, look)
