"""L_G: the global-representation loss (Sec. 3.4.1; with multi-crop Sec. A.2)."""

import torch
from jaxtyping import Float
from torch import Tensor

from glsd.losses.cross_entropy import distillation_cross_entropy


def global_representation_loss(
    u_bar_s: Float[Tensor, "batch views dim"],
    u_bar_t: Float[Tensor, "batch teacher_views dim"],
    weight_s: Float[Tensor, "prototypes dim"],
    weight_t: Float[Tensor, "prototypes dim"],
    center: Float[Tensor, " prototypes"],
    student_temperature: float,
    teacher_temperature: float,
) -> Float[Tensor, ""]:
    """Eq. 8, mean over the images: the mean of H over all pairs of a teacher view t and a student view v != t.

    The bottlenecks u-bar of head h-bar stand for z-bar; its last layers `weight_s` and `weight_t` complete it. The
    teacher's views are the student's first ones. With two of them there are 2 (N_L + 1) pairs; where the teacher sees
    all N views there are N (N - 1) and this is Eq. 2.
    """
    batch, num_views, _ = u_bar_s.shape
    teacher_rows = torch.arange(u_bar_t.shape[0] * u_bar_t.shape[1], device=u_bar_t.device)
    teacher_rows = teacher_rows.view(batch, 1, -1).expand(-1, num_views, -1)  # (B, V, T)
    weights = pair_weights(num_views, u_bar_t.shape[1], weight_s) / batch
    return distillation_cross_entropy(
        u_bar_s.flatten(0, 1),
        weight_s,
        u_bar_t.flatten(0, 1),
        weight_t,
        center,
        teacher_rows.flatten(0, 1),
        weights.expand(batch, -1, -1).flatten(0, 1),
        student_temperature,
        teacher_temperature,
    )


def pair_weights(num_views: int, num_teacher_views: int, like: Tensor) -> Float[Tensor, "views teacher_views"]:
    """Weight of the pair (student view v, teacher view t) in Eq. 8, 9 and 10: equal where v != t, with sum 1."""
    others = 1 - torch.eye(num_views, num_teacher_views, dtype=like.dtype, device=like.device)
    return others / (num_teacher_views * (num_views - 1))
