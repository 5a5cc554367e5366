"""Which teacher location each student location is matched to (k* of Sec. 3.4.2 and 3.4.3).

The student comes first: every student location k looks for its best teacher location k*. Eq. 4 and 6 read the other way
round (each teacher location looks for a student location); the authors' code, as EsViT's, does as is done here.
Matches carry no gradient.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional


class Matches(NamedTuple):
    """The match of every student location, with leading axes of student and teacher broadcast."""

    k_star: Int[Tensor, "*batch student_locations"]
    """Index of the matched teacher location, flattened over (height, width)."""
    distance: Float[Tensor, "*batch student_locations"]
    """By geometry d(k) in pixels of the original image; by similarity 1 - cosine."""
    keep: Bool[Tensor, "*batch student_locations"]
    """Whether the match counts in the loss: d(k) < s by geometry, always by similarity."""


@torch.no_grad()
def match_by_geometry(
    e_s: Float[Tensor, "*#batch height_s width_s 2"],
    e_t: Float[Tensor, "*#batch height_t width_t 2"],
    threshold: Float[Tensor, "*#batch"] | float | None = None,
) -> Matches:
    """Eq. 6's k* = argmin_j ||e_k - e'_j||, its distance d(k), and whether d(k) < s, strictly.

    Of equally near teacher locations the first is taken. `threshold` is s in pixels (`math.inf` keeps every match). By
    default it is half the larger cell diagonal of the two maps, measured between neighbouring cells; from geo,
    `glsd.geometry.matching_threshold` gives the same.

    Raises:
        ValueError: there is no threshold, and a map with a single row or column has no diagonal neighbours to take
            it from.
    """
    if threshold is None:
        threshold = torch.maximum(_neighbour_distance(e_s), _neighbour_distance(e_t)) / 2
    x_s, y_s = e_s.flatten(-3, -2).unsqueeze(-2).unbind(-1)  # (..., K_s, 1)
    x_t, y_t = e_t.flatten(-3, -2).unsqueeze(-3).unbind(-1)  # (..., 1, K_t)
    # Differences, not |a|^2 - 2ab + |b|^2, which loses the digits that tell neighbours apart in large images.
    squared = (x_s - x_t).square_() + (y_s - y_t).square_()  # (..., K_s, K_t)
    smallest, k_star = squared.min(-1)
    distance = smallest.sqrt()
    limit = threshold[..., None] if isinstance(threshold, Tensor) else threshold
    return Matches(k_star, distance, distance < limit)


@torch.no_grad()
def match_by_similarity(
    z_s: Float[Tensor, "*#batch locations_s dim"], z_t: Float[Tensor, "*#batch locations_t dim"]
) -> Matches:
    """Eq. 4's k*: the teacher location of highest cosine similarity; every match is kept; the first of equals wins.

    Similarities are in float32 even under autocast: nearly equal features are the interesting case.
    """
    with torch.autocast(z_s.device.type, enabled=False):
        z_s, z_t = (functional.normalize(z if z.dtype == torch.float64 else z.float(), dim=-1) for z in (z_s, z_t))
        similarity, k_star = (z_s @ z_t.transpose(-2, -1)).max(-1)
    return Matches(k_star, 1 - similarity, torch.ones_like(k_star, dtype=torch.bool))


def _neighbour_distance(e: Float[Tensor, "*batch height width 2"]) -> Float[Tensor, "*batch"]:
    if min(e.shape[-3:-1]) < 2:
        raise ValueError(
            f"a grid of {e.shape[-3]} x {e.shape[-2]} locations has no diagonal neighbours to take the threshold from; "
            "pass threshold=, for instance from glsd.geometry.matching_threshold"
        )
    return (e[..., 1, 1, :] - e[..., 0, 0, :]).square().sum(-1).sqrt()
