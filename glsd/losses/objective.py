"""The total objective in Table 1's three settings: vanilla, similarity, geometric."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from glsd.config import ObjectiveConfig
from glsd.geometry import matching_threshold, positions
from glsd.losses.global_loss import global_representation_loss
from glsd.losses.local_loss import local_representation_loss, matched_share
from glsd.losses.outputs import HeadPair, Level, ViewOutputs
from glsd.matching import Matches, match_by_geometry, match_by_similarity


class Losses(NamedTuple):
    """Means over the images, without dimensions."""

    total: Float[Tensor, ""]
    """The weighted sum of the two, which is minimised."""
    global_loss: Float[Tensor, ""]
    """L_G, Eq. 8."""
    local_loss: Float[Tensor, ""]
    """L_L, Eq. 9 or 10; 0 in the vanilla setting."""
    matched: Float[Tensor, ""]
    """Share of student locations whose match is kept, over all pairs; 0 in the vanilla setting."""


def objective(
    student: Sequence[ViewOutputs],
    teacher: ViewOutputs,
    geo: Float[Tensor, "batch views 7"],
    heads: Mapping[Level, HeadPair],
    config: ObjectiveConfig,
) -> Losses:
    """Algorithm 1, line 15 in the setting of Table 1 that `config` names, mean over the images.

    `student` holds the outputs of each group of equal crops, the two global crops first, `teacher` those of the two
    global crops, and `geo` w_geo of all views in that order. The vanilla setting needs no `dense` head.
    """
    global_weight, local_weight = config.weights
    u_bar_s = torch.cat([group.u["global"] for group in student], dim=1)
    global_loss = global_representation_loss(u_bar_s, teacher.u["global"], heads["global"])
    if config.setting == "vanilla":
        zero = torch.zeros_like(global_loss)
        return Losses(global_weight * global_loss, global_loss, zero, zero)

    if config.setting == "similarity":
        matches = [similarity_matches(group.z, teacher.z) for group in student]
    else:
        geos = torch.split(geo, [group.z.shape[1] for group in student], dim=1)
        geo_t, grid_t = geo[:, : teacher.z.shape[1]], (teacher.z.shape[2], teacher.z.shape[3])
        matches = [
            geometric_matches(geo_s, (group.z.shape[2], group.z.shape[3]), geo_t, grid_t, config.threshold_scale)
            for geo_s, group in zip(geos, student, strict=True)
        ]
    u_s = [group.u["dense"] for group in student]
    local_loss = local_representation_loss(u_s, teacher.u["dense"], matches, heads["dense"])
    total = global_weight * global_loss + local_weight * local_loss
    return Losses(total, global_loss, local_loss, matched_share(matches))


def geometric_matches(
    geo_s: Float[Tensor, "batch views 7"],
    grid_s: tuple[int, int],
    geo_t: Float[Tensor, "batch teacher_views 7"],
    grid_t: tuple[int, int],
    threshold_scale: float | None,
) -> Matches:
    """Matches of Eq. 6 for every pair of views, leading axes (batch, views, teacher_views).

    `threshold_scale` multiplies the threshold s; None keeps every match.
    """
    geo_s, geo_t = geo_s[:, :, None], geo_t[:, None, :]
    if threshold_scale is None:
        threshold: Tensor | float = math.inf
    else:
        threshold = threshold_scale * matching_threshold(geo_s, grid_s, geo_t, grid_t)
    return match_by_geometry(positions(geo_s, grid_s), positions(geo_t, grid_t), threshold)


def similarity_matches(
    z_s: Float[Tensor, "batch views height_s width_s dim"],
    z_t: Float[Tensor, "batch teacher_views height_t width_t dim"],
) -> Matches:
    """Matches of Eq. 4 for every pair of views, leading axes (batch, views, teacher_views)."""
    rows = z_s.flatten(1, 3)  # (B, V K, d): one product a teacher view, where broadcasting would copy the features
    found = [match_by_similarity(rows, z) for z in z_t.flatten(2, 3).unbind(1)]
    shape = (z_s.shape[1], z_s.shape[2] * z_s.shape[3])
    return Matches(*(torch.stack([f.unflatten(1, shape) for f in field], 2) for field in zip(*found, strict=True)))
