"""What measured numbers mean: a collapse (Sec. 4.6) or not, and how far chance may carry a share; without torch."""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

from glsd.config import Config

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


def standard_error(share: float, num_images: int) -> float:
    """Of a share of that many images: how far chance may carry it."""
    return math.sqrt(share * (1 - share) / num_images)
