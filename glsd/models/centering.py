"""Centring of the teacher's outputs (Sec. 3.4): two centres, one a head, as moving averages of mean logits.

Logits are linear in the bottleneck, so their mean over all rows and ranks is the mean bottleneck times the last
layer: no logits are made for the centres.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Centers(NamedTuple):
    """Centres of the teacher's logits of h̄ and of h, or the mean logits they move towards; vanilla has no second."""

    global_: Float[Tensor, " prototypes"]
    dense: Float[Tensor, " prototypes"] | None


class LastLayers(NamedTuple):
    """Last-layer weights (I, D) of both networks' heads; vanilla has no dense ones."""

    student: Float[Tensor, "prototypes bottleneck"]
    student_dense: Float[Tensor, "prototypes bottleneck"] | None
    teacher: Float[Tensor, "prototypes bottleneck"]
    teacher_dense: Float[Tensor, "prototypes bottleneck"] | None


def mean_logits(
    x_mean: Float[Tensor, " bottleneck"], weight: Float[Tensor, "prototypes bottleneck"]
) -> Float[Tensor, " prototypes"]:
    """The mean of `x @ weight.T` over rows whose mean is `x_mean`, in the precision of the weight."""
    with torch.autocast(weight.device.type, enabled=False):
        return weight @ x_mean.to(weight.dtype)


def update_centers(centers: Centers, means: Centers, momentum: float, gate: Bool[Tensor, ""] | None = None) -> Centers:
    """Move c to momentum * c + (1 - momentum) * mean logits, after the step's loss; a false `gate` leaves it."""

    def moved(center: Tensor, mean: Tensor) -> Tensor:
        new = momentum * center + (1 - momentum) * mean
        return new if gate is None else torch.where(gate, new, center)

    if centers.dense is None or means.dense is None:
        assert centers.dense is means.dense, "the means are of the heads that there are"
        return Centers(moved(centers.global_, means.global_), None)
    return Centers(moved(centers.global_, means.global_), moved(centers.dense, means.dense))
