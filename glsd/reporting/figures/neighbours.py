"""Nearest neighbours of some images, with their classes and similarities (not in the paper)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from glsd.reporting.figures import canvas
from glsd.reporting.figures.canvas import BLUE, DASHED, GAP, MARGIN, ORANGE, TITLE, WIDTH, Image


def draw_neighbours(
    queries: Sequence[Image],
    query_labels: Sequence[str],
    neighbours: Sequence[Sequence[Image]],
    neighbour_labels: Sequence[Sequence[str]],
    similarities: Float[np.ndarray, "queries k"],
) -> Figure:
    """Each query (left) with its nearest neighbours, nearest first, their labels and cosine similarities.

    A neighbour of the query's class has a tick and a full frame, another a cross and a dashed one. Images are cut to
    their central square.
    """
    num_neighbours = len(neighbours[0])
    apart = 3 * GAP  # between the queries and their neighbours
    side = (WIDTH - 2 * MARGIN - apart) / (num_neighbours + 1) - GAP
    figure = canvas.blank_figure(len(queries) * (side + TITLE + GAP) + MARGIN - GAP)
    for row, (query, query_label) in enumerate(zip(queries, query_labels, strict=True)):
        top = row * (side + TITLE + GAP) + TITLE
        axes = canvas.picture_panel(figure, MARGIN, top, side, side)
        canvas.show(axes, _central_square(query))
        canvas.heading(axes, canvas.shortened(query_label, side + 2 * MARGIN), weight="bold")
        for rank, (neighbour, label) in enumerate(zip(neighbours[row], neighbour_labels[row], strict=True)):
            axes = canvas.picture_panel(figure, MARGIN + apart + (rank + 1) * (side + GAP), top, side, side)
            canvas.show(axes, _central_square(neighbour))
            same = label == query_label
            canvas.frame(axes, BLUE if same else ORANGE, "-" if same else DASHED)
            canvas.heading(
                axes, f"{'✓' if same else '✗'} {canvas.shortened(label, side - 0.5)}  {similarities[row, rank]:.2f}"
            )
    return figure


def _central_square(image: Image) -> Image:
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]
