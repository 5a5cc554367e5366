"""Collapse (Sec. 4.6): does the teacher still tell images and locations apart?

The first functions are the measures, pure functions of features or outputs. `collapse_metrics` takes the cheap ones
during training, `collapse_report` and `encoder_collapse` all there are of a checkpoint and of an encoder without heads.
`collapse_verdict` says what the numbers mean, and `CollapseWatch` whether that lasts during a run.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from torch import Tensor
from torch.nn import functional

from glsd.augment import multicrop_batch
from glsd.config import Config
from glsd.evaluation.encoder import Encoder
from glsd.losses import teacher_distribution
from glsd.matching import match_by_similarity
from glsd.models import Centers, Network, ViewOutputs
from glsd.training import Batch, TrainState, autocast, initial_state, to_device, unit_losses

COLLAPSE_MEASURES = {
    "feature_std": ("Deviation of the features", "1 as isotropic vectors of unit length, 0 when all z̄ are equal"),
    "effective_rank": ("Effective rank of the features", "a share of the most possible; 0 is a single direction"),
    "rank_me": ("Effective rank, in directions", "RankMe"),
    "k_star_entropy": ("Entropy of the matched locations", "a share: 1 is all locations alike, 0 always the same one"),
    "k_star_distinct": ("Distinct matched locations", "the share of the locations that any other is matched to"),
    "entropy_global": ("Entropy of the global head", "1 is uniform outputs, 0 is one prototype"),
    "entropy_dense": ("Entropy of the dense head", "1 is uniform outputs, 0 is one prototype"),
    "information_global": ("Information of the global head", "0 when all images have the same output"),
    "information_dense": ("Information of the dense head", "0 when all locations have the same output"),
    "loss_share": ("Global loss over ln I", "near 1 when outputs are uniform"),
    "input_gradient_norm": ("Norm of the input's gradient", "near 0 when the outputs do not depend on the image"),
}
"""Name of each measure of collapse (Sec. 4.6), and how to read it."""

_OUTPUT_ROWS = 64
"""Rows of a head whose outputs are looked at: 16 MB of logits over 65536 prototypes."""

_LIMITS = {
    # Small convolutional networks that were trained without centring (one prototype for all) come to 0.0000 within a
    # hundred steps, and those that end in uniform outputs to 0.0003-0.002, while their features still differ: the
    # outputs are the first to collapse. A trained demo has 0.25-0.35, untrained Swin-T, ViT-Ti and ResNet-18 have
    # 0.03-0.16, and a run on a plateau near the uniform had 0.014.
    "information_global": (0.005, "head h̄ gives all images nearly the same output"),
    "information_dense": (0.005, "head h gives all locations nearly the same output"),
    # Untrained backbones have 0.35-0.97, and 0.14 was left after a hundred steps of collapse. Its end is rounding, in
    # bfloat16 about 0.003.
    "feature_std": (0.01, "all images have nearly the same z̄"),
    # A single direction has 0, and rounded to bfloat16 0.0035 among 16 rows, 0.002 among 64. Of convolutions without
    # training, whose z̄ differ least, 0.04 is left among 64 photographs and 0.02 among 128.
    "effective_rank": (0.005, "the z̄ of all images lie in one direction"),
    # Untrained and little trained backbones have 0.06 or more on maps of 2 x 2 locations and 0.4 on 7 x 7; the end of
    # Fig. 7 is 0.
    "k_star_entropy": (0.02, "nearly all locations are matched to one location"),
}
"""A metric below its limit is a collapse; why the limit is where it is, and what it means."""

_UNIFORM_LOSS = 0.002
"""So near to ln(prototypes) the loss is that of uniform outputs. A healthy loss may stay there for a while, so it
counts only where the outputs themselves are not known."""


class Collapsed(RuntimeError):
    """The teacher has collapsed, and `collapse: stop` is set."""


class Verdict(NamedTuple):
    """Whether the teacher has collapsed, and the numbers that this rests on."""

    label: Literal["healthy", "collapsed"]
    reasons: tuple[str, ...]
    """A sentence with its number and limit for each finding; none if healthy."""


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

    Args:
        teacher: the network with its heads.
        batch: images in two global crops, and others that are not looked at.
        centers: of the teacher's outputs.
        config: the experiment.
        temperature: of the teacher's outputs.

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
    for name, head, u, center in _heads(teacher, views, centers):
        rows = u.flatten(0, -2)
        rows = rows[torch.linspace(0, len(rows) - 1, min(_OUTPUT_ROWS, len(rows)), device=u.device).long()]
        metrics[f"entropy_{name}"], metrics[f"information_{name}"] = output_entropy_and_information(
            rows, head.last_layer_weight(), center, temperature
        )
    return metrics


def collapse_verdict(metrics: Mapping[str, float | int]) -> Verdict:
    """What the metrics mean; those that are not there say nothing, and one that is not finite is a collapse.

    >>> collapse_verdict({"feature_std": 0.5, "information_dense": 0.0004})
    Verdict(label='collapsed', reasons=('information_dense 0.0004 is below 0.005: head h gives all locations \
nearly the same output',))
    """
    reasons = [f"{name} is {value}: it is not finite" for name, value in metrics.items() if not math.isfinite(value)]
    reasons += [
        f"{name} {metrics[name]:.2g} is below {limit}: {meaning}"
        for name, (limit, meaning) in _LIMITS.items()
        if name in metrics and metrics[name] < limit
    ]
    if "information_global" not in metrics and abs(metrics.get("loss_share", 0.0) - 1) < _UNIFORM_LOSS:
        reasons.append(
            f"loss_share {metrics['loss_share']:.4f} is within {_UNIFORM_LOSS} of 1: the global loss is that of "
            "uniform outputs, ln(prototypes)"
        )
    return Verdict("collapsed" if reasons else "healthy", tuple(reasons))


class CollapseWatch:
    """Judges a run's readings after its warm-up; collapsed is what has been so for an epoch and three times in a row.

    A teacher that tells images apart may pass through a state in which it hardly does, above all while the learning
    rate rises; what is collapsed stays so (Sec. 4.6: it cannot recover).
    """

    def __init__(self, config: Config) -> None:
        self._from_epoch = max(1, config.optim.warmup_epochs)
        self._most_entropy = math.log(config.model.num_prototypes)
        self._since, self._readings = 0.0, 0
        self.reasons: tuple[str, ...] = ()
        """Of the latest reading."""

    def judge(self, metrics: Mapping[str, float | int]) -> dict[str, float]:
        """`loss_share`, the global loss over ln(prototypes), and `collapsed`, 1 or 0, of the loop's next metrics.

        During the warm-up there is no `collapsed`.
        """
        judged = {"loss_share": metrics["loss_global"] / self._most_entropy}
        epoch = metrics["epoch"]
        if epoch <= self._from_epoch:
            return judged
        label, self.reasons = collapse_verdict({**metrics, **judged})
        if label == "healthy":
            self._readings = 0
        elif self._readings == 0:
            self._since = epoch
        self._readings += label == "collapsed"
        return judged | {"collapsed": float(self._readings >= 3 and epoch >= self._since + 1)}


def collapse_report(
    config: Config,
    state: dict[str, Any],
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
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
        images: two or more.
        image_ids: they key the augmentations.
        device: where it is computed.

    Raises:
        ValueError: fewer than two images.
    """
    _check_images(images)
    restored = initial_state(config, torch.device(device))
    restored.load_state_dict(state)
    num_units = math.ceil(len(images) / config.data.unit_size)
    measured: dict[str, list[tuple[float, int]]] = {}
    for rows in np.array_split(np.arange(len(images)), num_units):
        ids = np.array([image_ids[row] for row in rows])
        unit = multicrop_batch(
            [images[row] for row in rows], config.augment, config.seed, config.optim.epochs, ids, "worker"
        )
        batch = to_device(unit | {"image_id": ids}, config.augment, torch.device(device))
        for name, value in _unit_report(restored, batch, config).items():
            measured.setdefault(name, []).append((float(value), len(rows)))
    metrics = {name: _weighted_mean(parts) for name, parts in measured.items()}
    return metrics, collapse_verdict(metrics)


@torch.no_grad()
def encoder_collapse(
    encoder: Encoder, z_bar: Float[Tensor, "images dim"], images: Sequence[UInt8[np.ndarray, "_ _ 3"]]
) -> tuple[dict[str, float], Verdict]:
    """The measures that need no heads: of z̄ of a whole data set, and of the matchings of some of its images.

    `feature_std`, `effective_rank` (as a share) and `rank_me` (the same in directions) are of z̄;
    `k_star_entropy` and `k_star_distinct` are of two global crops of each of the upright RGB images, resized to
    `evaluation.crop`.

    Raises:
        ValueError: fewer than two images.
    """
    _check_images(z_bar)
    metrics = _feature_metrics(z_bar)
    metrics["rank_me"] = _directions(metrics["effective_rank"], min(z_bar.shape))
    globals_only = encoder.config.augment.model_copy(
        update={"global_size": encoder.config.evaluation.crop, "local_sizes": (), "num_local_crops": ()}
    )
    device = next(encoder.parameters()).device
    usages: list[dict[str, Tensor]] = []
    for image_id, image in enumerate(images):
        crops = multicrop_batch([image], globals_only, encoder.config.seed, 0, np.array([image_id]), "worker")
        _, z = encoder(encoder.normalize(torch.from_numpy(crops["crops_0"][0]).to(device)))
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


def _directions(share: Tensor, most: int) -> Tensor:
    """RankMe of an `effective_rank` that is a share of the `most` directions possible."""
    return 1 + share * (most - 1)


def _matching_metrics(z: Float[Tensor, "images 2 height width dim"]) -> dict[str, Tensor]:
    """Usage of k* from each of the two global crops to the other."""
    z = z.flatten(2, 3)  # (B, 2, K, d)
    num_locations = z.shape[2]
    if num_locations == 1:
        return {}
    entropy, distinct = k_star_usage(match_by_similarity(z, z.flip(1)).k_star, num_locations)
    return {"k_star_entropy": entropy, "k_star_distinct": distinct}


def _heads(teacher: Network, views: ViewOutputs, centers: Centers) -> list[tuple[str, Any, Tensor, Tensor]]:
    heads = [("global", teacher.head, views.u_bar, centers.global_)]
    if teacher.dense_head is not None:
        assert views.u is not None
        assert centers.dense is not None
        heads.append(("dense", teacher.dense_head, views.u, centers.dense))
    return heads


def _unit_report(state: TrainState, batch: Batch, config: Config) -> dict[str, Tensor]:
    temperature = config.objective.teacher_temperature
    metrics = collapse_metrics(state.teacher, batch, state.centers, config, temperature)
    if "effective_rank" in metrics:
        most = min(2 * len(batch.geo), state.teacher.backbone.dim)
        metrics["rank_me"] = _directions(metrics["effective_rank"], most)
    crops = batch.crops[0].requires_grad_()
    losses, _ = unit_losses(state, state.student, batch, config, temperature)
    (gradient,) = torch.autograd.grad(losses.total * len(batch.geo), crops)
    metrics["loss_share"] = losses.global_loss.detach() / math.log(config.model.num_prototypes)
    metrics["input_gradient_norm"] = gradient.square().mean().sqrt()
    return metrics


def _weighted_mean(parts: Sequence[tuple[float, int]]) -> float:
    return sum(value * weight for value, weight in parts) / sum(weight for _, weight in parts)


def _check_images(images: Sequence[Any] | Tensor) -> None:
    if len(images) < 2:
        raise ValueError(f"collapse shows in how images differ, so it takes two or more of them, not {len(images)}")
