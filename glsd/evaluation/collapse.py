"""Collapse (Sec. 4.6): does the teacher still tell images and locations apart?

The first functions are the measures, pure functions of features or outputs. `collapse_metrics` takes the cheap ones
during training, `collapse_report` and `encoder_collapse` all there are of a checkpoint and of an encoder without heads.
What the numbers mean is `verdict.collapse_verdict`'s.
"""

import math
from collections.abc import Iterable, Sequence, Sized
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from torch import Tensor
from torch.nn import functional

from glsd.augment.multicrop import ViewBatch, multicrop_batch
from glsd.config import Config
from glsd.encoder.encoder import Encoder
from glsd.evaluation.verdict import Verdict, collapse_verdict
from glsd.losses.cross_entropy import teacher_distribution
from glsd.matching import match_by_similarity
from glsd.models.centering import Centers
from glsd.models.student_teacher import Network
from glsd.training.batch import Batch, to_device
from glsd.training.state import TrainState, initial_state
from glsd.training.step import autocast, unit_losses

_OUTPUT_ROWS = 64
"""Rows of a head whose outputs are looked at: 16 MB of logits over 65536 prototypes."""


def feature_std(z_bar: Float[Tensor, "rows dim"]) -> Float32[Tensor, ""]:
    """Standard deviation of unit vectors: sqrt(sum_i |z_i / |z_i| - mean|^2 / (rows - 1)).

    As isotropic features of unit length have 1, equal ones 0.
    """
    unit_vectors: Tensor = functional.normalize(z_bar.float(), dim=-1)
    return unit_vectors.var(0).sum().sqrt()


def effective_rank(z_bar: Float[Tensor, "rows dim"]) -> Float32[Tensor, ""]:
    """RankMe (Garrido et al. 2023): exp(-sum_i p_i ln p_i) with p_i = sigma_i / sum_j sigma_j of the features' matrix.

    From 1, all features in one direction, to min(rows, dim); NaN where a feature is not finite.
    """
    finite = z_bar.isfinite().all()
    sigma = torch.linalg.svdvals(torch.where(finite, z_bar.float(), 0))  # which fails where a number is not finite
    p: Tensor = sigma / sigma.sum().clamp_min(torch.finfo(torch.float32).tiny)  # all features may be 0
    entropy: Tensor = torch.special.entr(p).sum()
    return torch.where(finite, entropy.exp(), torch.nan)


def k_star_usage(
    k_star: Int[Tensor, "*pairs locations"], num_locations: int
) -> tuple[Float32[Tensor, ""], Float32[Tensor, ""]]:
    """How matches spread over the K > 1 locations they are looked for in (Fig. 7), means over the pairs of views.

    With q_j the share of locations k whose k* is j: the entropy -sum_j q_j ln q_j over ln K, and the number of
    distinct k* over K. All matched to one location is (0, 1 / K), a permutation (1, 1).
    """
    q = functional.one_hot(k_star, num_locations).float().mean(-2)  # (..., K)
    entropy = torch.special.entr(q).sum(-1) / math.log(num_locations)
    return entropy.mean(), (q > 0).float().mean()


def output_entropy_and_information(
    u: Float[Tensor, "rows dim"],
    weight: Float[Tensor, "prototypes dim"],
    center: Float[Tensor, " prototypes"],
    temperature: float,
) -> tuple[Float32[Tensor, ""], Float32[Tensor, ""]]:
    """How undecided a head's outputs p_r are and how much they tell about the row, as shares of the most possible.

    The mean entropy sum_r H(p_r) / R over ln I, and the information (H(mean_r p_r) - sum_r H(p_r) / R) over
    ln min(R, I). Collapse to one prototype and collapse to a uniform distribution are opposite in the entropy, 0 and
    1, and alike in the information, 0.
    """
    p = teacher_distribution(u.float() @ weight.float().mT, center, temperature)
    entropy = torch.special.entr(p).sum(-1).mean()
    information = torch.special.entr(p.mean(0)).sum() - entropy
    return entropy / math.log(weight.shape[0]), information / math.log(min(p.shape))


@torch.no_grad()
def collapse_metrics(
    teacher: Network, batch: Batch, centers: Centers, config: Config, temperature: float
) -> dict[str, Tensor]:
    """The cheap measures of a teacher on one unit: a forward pass of its two global crops, and 64 rows of each head.

    The teacher is as it is evaluated, in evaluation mode, and is left as it was. No random number is drawn. What would
    compare images is left out for a unit of a single one, what would compare locations for maps of a single one.
    `centers` and `temperature` are those of the teacher's outputs.

    Returns:
        Tensors without dimensions on the teacher's device: `feature_std`, `effective_rank` (as a share, from 0 for one
        direction to 1 for the most possible), `k_star_entropy`, `k_star_distinct`, `entropy_global`,
        `information_global` and, where there is a dense head, `entropy_dense` and `information_dense`.
    """
    was_training = teacher.training
    teacher.eval()
    with autocast(config, batch.geo.device):
        (views,) = teacher(batch.crops[:1])
    teacher.train(was_training)
    metrics = _matching_metrics(views.z)
    if len(batch.geo) == 1:
        return metrics
    metrics |= _feature_metrics(views.z_bar.flatten(0, 1))
    for name, head in teacher.heads.items():
        rows = views.u[name].flatten(0, -2)
        rows = rows[torch.linspace(0, len(rows) - 1, min(_OUTPUT_ROWS, len(rows)), device=rows.device).long()]
        metrics[f"entropy_{name}"], metrics[f"information_{name}"] = output_entropy_and_information(
            rows, head.last_layer_weight(), centers[name], temperature
        )
    return metrics


def collapse_report(
    config: Config,
    state: dict[str, Any],
    images: Iterable[UInt8[np.ndarray, "_ _ 3"]],
    image_ids: Sequence[int],
    device: str = "cpu",
) -> tuple[dict[str, float], Verdict]:
    """All measures of a checkpoint on upright RGB images, augmented as no epoch of the run augmented them.

    Beside those of `collapse_metrics`, at the teacher's last temperature and as means over units of
    `data.unit_size` images: `rank_me` (the effective rank in directions), `loss_share` (L_G over ln(prototypes)) and
    `input_gradient_norm`, the root mean square over the pixels of both global crops of the gradient of an image's loss,
    which in a collapse is near 0 as that of f is.

    Args:
        config: the checkpoint's.
        state: what `load_checkpoint` gave.
        images: two or more, each asked for when its turn has come.
        image_ids: of each image; they key the augmentations.
        device: of the computation.

    Raises:
        ValueError: fewer than two images, or fewer than ids.
    """
    _check_number(image_ids)
    restored = initial_state(config, torch.device(device))
    restored.load_state_dict(state)
    num_units = math.ceil(len(image_ids) / config.data.unit_size)
    arriving = iter(images)
    measured: dict[str, list[tuple[float, int]]] = {}
    for ids in np.array_split(np.array(image_ids), num_units):
        unknown = np.ones((len(ids), 2), np.int64)
        views = ViewBatch(config.augment, config.seed, config.optim.epochs, ids, unknown, "worker")
        for row, image_id in enumerate(ids.tolist()):
            image = next(arriving, None)
            if image is None:
                raise ValueError(f"there are {len(image_ids)} image_ids and fewer images")
            views.crop(row, image_id, image)
        batch = to_device(views.arrays() | {"image_id": ids}, config.augment, torch.device(device))
        for name, value in _unit_report(restored, batch, config).items():
            measured.setdefault(name, []).append((float(value), len(ids)))
    metrics = {
        name: sum(value * weight for value, weight in parts) / sum(weight for _, weight in parts)
        for name, parts in measured.items()
    }
    return metrics, collapse_verdict(metrics)


@torch.no_grad()
def encoder_collapse(
    encoder: Encoder, z_bar: Float[Tensor, "images dim"], images: Iterable[UInt8[np.ndarray, "_ _ 3"]]
) -> tuple[dict[str, float], Verdict]:
    """The measures that need no heads: of z̄ of a whole data set, and of the matchings of some of its images.

    `feature_std`, `effective_rank` (as a share) and `rank_me` (the same in directions) are of z̄;
    `k_star_entropy` and `k_star_distinct` are of two global crops of each of the upright RGB images, resized to
    `evaluation.crop`.

    Raises:
        ValueError: fewer than two images.
    """
    _check_number(z_bar)
    metrics = _feature_metrics(z_bar)
    metrics["rank_me"] = 1 + metrics["effective_rank"] * (min(z_bar.shape) - 1)
    globals_only = encoder.config.augment.model_copy(
        update={"global_size": encoder.config.evaluation.crop, "local_sizes": (), "num_local_crops": ()}
    )
    usages: list[dict[str, Tensor]] = []
    for image_id, image in enumerate(images):
        crops = multicrop_batch([image], globals_only, encoder.config.seed, 0, np.array([image_id]), "worker")
        _, z = encoder.represent(torch.from_numpy(crops["crops_0"][0]))
        usages.append(_matching_metrics(z[None]))
    for name in usages[0] if usages else ():
        metrics[name] = torch.stack([usage[name] for usage in usages]).mean()
    values = {name: float(value) for name, value in metrics.items()}
    return values, collapse_verdict(values)


def _feature_metrics(z_bar: Float[Tensor, "rows dim"]) -> dict[str, Tensor]:
    return {
        "feature_std": feature_std(z_bar),
        "effective_rank": (effective_rank(z_bar) - 1) / (min(z_bar.shape) - 1),
    }


def _matching_metrics(z: Float[Tensor, "images 2 height width dim"]) -> dict[str, Tensor]:
    """Usage of k* from each of the two global crops to the other."""
    z = z.flatten(2, 3)  # (B, 2, K, d)
    num_locations = z.shape[2]
    if num_locations == 1:
        return {}
    entropy, distinct = k_star_usage(match_by_similarity(z, z.flip(1)).k_star, num_locations)
    return {"k_star_entropy": entropy, "k_star_distinct": distinct}


def _unit_report(state: TrainState, batch: Batch, config: Config) -> dict[str, Tensor]:
    temperature = config.objective.teacher_temperature
    metrics = collapse_metrics(state.teacher, batch, state.centers, config, temperature)
    if "effective_rank" in metrics:
        most = min(2 * len(batch.geo), state.teacher.backbone.dim)
        metrics["rank_me"] = 1 + metrics["effective_rank"] * (most - 1)
    crops = batch.crops[0].requires_grad_()
    losses, _ = unit_losses(state, batch, temperature, config)
    (gradient,) = torch.autograd.grad(losses.total * len(batch.geo), crops)
    metrics["loss_share"] = losses.global_loss.detach() / math.log(config.model.num_prototypes)
    metrics["input_gradient_norm"] = gradient.square().mean().sqrt()
    return metrics


def _check_number(images: Sized) -> None:
    if len(images) < 2:
        raise ValueError(f"collapse shows in how images differ, so it takes two or more of them, not {len(images)}")
