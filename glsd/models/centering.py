"""Centring of the teacher's outputs (Sec. 4.2): a centre for each head, the moving average of its mean logits.

Logits are linear in the bottleneck, so their mean over all rows and ranks is the mean bottleneck times the last
layer: no logits are made for the centres.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from glsd.losses.outputs import Level

Centers = dict[Level, Tensor]
"""The centre (I,) of each head's logits, or the mean logits that it moves towards."""


def mean_logits(
    x_mean: Float[Tensor, " bottleneck"], weight: Float[Tensor, "prototypes bottleneck"]
) -> Float[Tensor, " prototypes"]:
    """The mean of `x @ weight.T` over rows whose mean is `x_mean`, in the precision of the weight."""
    with torch.autocast(weight.device.type, enabled=False):
        return weight @ x_mean.to(weight.dtype)


def update_centers(centers: Centers, means: Centers, momentum: float, gate: Bool[Tensor, ""] | None = None) -> Centers:
    """Move c to momentum * c + (1 - momentum) * mean logits, after the step's loss; a false `gate` leaves it."""
    moved = {level: momentum * center + (1 - momentum) * means[level] for level, center in centers.items()}
    return moved if gate is None else {level: torch.where(gate, moved[level], centers[level]) for level in moved}
