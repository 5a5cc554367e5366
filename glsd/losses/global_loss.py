"""L_G: the global-representation loss (Sec. 3.4.1; with multi-crop Sec. A.2)."""

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from glsd.losses.cross_entropy import distillation_cross_entropy
from glsd.losses.outputs import HeadPair


def global_representation_loss(
    u_bar_s: Float[Tensor, "batch views dim"], u_bar_t: Float[Tensor, "batch teacher_views dim"], heads: HeadPair
) -> Float[Tensor, ""]:
    """Eq. 8, mean over the images: the mean of H over all pairs of a teacher view t and a student view v != t.

    u-bar is the bottleneck of head h-bar on z-bar; `heads` complete the head. The teacher's views are the student's
    first ones. With two of them there are 2 (N_L + 1) pairs; where the teacher sees all N views there are N (N - 1) and
    this is Eq. 2.
    """
    batch, num_views, _ = u_bar_s.shape
    rows = torch.arange(u_bar_t.shape[0] * u_bar_t.shape[1], device=u_bar_t.device)
    weights = pair_weights(num_views, u_bar_t.shape[1], heads.weight_s) / batch
    return distillation_cross_entropy(
        rearrange(u_bar_s, "b v d -> (b v) d"),
        rearrange(u_bar_t, "b t d -> (b t) d"),
        heads,
        repeat(rows, "(b t) -> (b v) t", b=batch, v=num_views),
        repeat(weights, "v t -> (b v) t", b=batch),
    )


def pair_weights(num_views: int, num_teacher_views: int, like: Tensor) -> Float[Tensor, "views teacher_views"]:
    """Weight of the pair (student view v, teacher view t) in Eq. 8, 9 and 10: equal where v != t, with sum 1."""
    others = 1 - torch.eye(num_views, num_teacher_views, dtype=like.dtype, device=like.device)
    return others / (num_teacher_views * (num_views - 1))
