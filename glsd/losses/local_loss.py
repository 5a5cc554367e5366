"""L_L: the local-representation loss over given matches (Sec. 3.4.2, 3.4.3; with multi-crop Sec. A.2).

Matches by similarity make it L_L^sim (Eq. 4, 5, 9), matches by geometry L_L^geo (Eq. 6, 7, 10); see `glsd.matching`.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from glsd.losses.cross_entropy import distillation_cross_entropy
from glsd.losses.global_loss import pair_weights
from glsd.losses.outputs import HeadPair
from glsd.matching import Matches


def local_representation_loss(
    u_s: Sequence[Float[Tensor, "batch _ _ _ dim"]],
    u_t: Float[Tensor, "batch teacher_views height width dim"],
    matches: Sequence[Matches],
    heads: HeadPair,
) -> Float[Tensor, ""]:
    """Eq. 9 and 10, mean over the images: the mean of L_L over all pairs of a teacher view t and a student view v != t.

    L_L of a pair is Eq. 4 or 6 in the direction of the authors' code: each student location k looks for its teacher
    location k*, and the mean of 1{keep} H runs over all K student locations, kept or not. (As printed, each teacher
    location looks for a student location; few teacher locations lie in a local crop, so that would weigh local crops
    about 2.4 times less.)

    `u_s` holds the dense bottlenecks (batch, views, height, width, dim) of each group of equal crops, in the order of
    the views, `matches` their matches with leading axes (batch, views, teacher_views). The teacher's views are the
    student's first ones. `heads` complete the head h.
    """
    batch, num_teacher_views, height, width, _ = u_t.shape
    weights = pair_weights(sum(u.shape[1] for u in u_s), num_teacher_views, heads.weight_s) / batch
    first_rows = torch.arange(batch * num_teacher_views, device=u_t.device) * (height * width)
    first_rows = rearrange(first_rows, "(b t) -> b 1 t 1", b=batch)
    rows, row_weights = [], []
    for match, weight in zip(matches, torch.split(weights, [u.shape[1] for u in u_s]), strict=True):
        kept = match.keep * (weight / match.keep.shape[-1])[..., None]  # (B, V, T, K)
        rows.append(rearrange(first_rows + match.k_star, "b v t k -> (b v k) t"))
        row_weights.append(rearrange(kept, "b v t k -> (b v k) t"))
    return distillation_cross_entropy(
        torch.cat([rearrange(u, "b v h w d -> (b v h w) d") for u in u_s]),
        rearrange(u_t, "b t h w d -> (b t h w) d"),
        heads,
        torch.cat(rows),
        torch.cat(row_weights),
    )


def matched_share(matches: Sequence[Matches]) -> Float[Tensor, ""]:
    """Share of kept matches among all student locations of all pairs with v != t; `matches` as in the loss."""
    num_views = [match.keep.shape[1] for match in matches]
    first = matches[0].keep
    is_pair = ~torch.eye(sum(num_views), first.shape[2], dtype=torch.bool, device=first.device)
    kept, total = [], []
    for match, pairs in zip(matches, torch.split(is_pair, num_views), strict=True):
        kept.append((match.keep & pairs[..., None]).sum())
        total.append(pairs[..., None].expand_as(match.keep).sum())
    return torch.stack(kept).sum() / torch.stack(total).sum()
