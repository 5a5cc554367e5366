"""Linear evaluation (Sec. 4.3): how far a linear layer on frozen representations gets.

The protocol is a layer trained by SGD on the representations of random crops: `linear_crop` makes the crop,
`LinearProbe` is what changes, `linear_step` changes it, `linear_accuracy` counts. Decoding, the frozen encoder, the
order of the images and the workers are left to others; the quick form on cached representations is in `logistic`.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional

from glsd.augment.distributions import sample_views
from glsd.config import AugmentConfig, LinearConfig
from glsd.evaluation.knn import accuracy_of_ranks, check_labels
from glsd.runs.records import Accuracy


@dataclass
class LinearProbe:
    """The linear layer, its SGD with momentum, and the number of steps done."""

    layer: nn.Linear
    optimizer: torch.optim.SGD
    step: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only."""
        return {"step": self.step, "layer": self.layer.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self.step = state["step"]
        self.layer.load_state_dict(state["layer"])
        self.optimizer.load_state_dict(state["optimizer"])


def initial_probe(dim: int, num_classes: int, config: LinearConfig, device: torch.device) -> LinearProbe:
    """Weights from N(0, 0.01^2) keyed by `config.seed`, biases of zero (as in DINO's evaluation), no momentum yet."""
    layer = nn.Linear(dim, num_classes, device="meta").to_empty(device=device)
    weight = torch.empty(num_classes, dim).normal_(0, 0.01, generator=torch.Generator().manual_seed(config.seed))
    layer.load_state_dict({"weight": weight, "bias": torch.zeros(num_classes)})
    return LinearProbe(layer, torch.optim.SGD(layer.parameters(), lr=0.0, momentum=config.momentum))


def linear_learning_rate(step: int, total_steps: int, config: LinearConfig) -> float:
    """A cosine from base_lr * B / 256 to 0, changing at every step (the authors' at every epoch)."""
    return config.base_lr * config.batch_size / 256 * (1 + math.cos(math.pi * step / total_steps)) / 2


def linear_step(
    probe: LinearProbe,
    layer: nn.Module,
    z_bar: Float[Tensor, "images dim"],
    labels: Int64[Tensor, " images"],
    num_images: int,
    total_steps: int,
    config: LinearConfig,
) -> Float[Tensor, ""]:
    """One step of SGD on the mean cross entropy of the step's images; workers may have unequal shares of them.

    Args:
        probe: changed in place.
        layer: `probe.layer`, or that in DistributedDataParallel.
        z_bar: representations of this worker's images; there may be none.
        labels: their classes.
        num_images: of the step over all workers.
        total_steps: of the whole training.
        config: of batch size and learning rate.

    Returns:
        This worker's part of the mean loss, on the device: the sum over the workers is the mean over the images.
    """
    for group in probe.optimizer.param_groups:
        group["lr"] = linear_learning_rate(probe.step, total_steps, config)
    loss = functional.cross_entropy(layer(z_bar), labels, reduction="sum") / num_images
    probe.optimizer.zero_grad(set_to_none=True)
    num_workers = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    (loss * num_workers).backward()  # DistributedDataParallel takes the mean over the workers
    probe.optimizer.step()
    probe.step += 1
    return loss.detach()


def linear_accuracy(
    logits: Float[Tensor, "images classes"], labels: Int64[Tensor, " images"], num_classes: int
) -> Accuracy:
    """Top-1 and top-min(5, classes) accuracy; of equal logits that of the lower class is ahead.

    Raises:
        ValueError: no image, a label that is not in [0, num_classes), or a logit that is not finite.
    """
    check_labels("labels", labels, num_classes)
    if not bool(logits.isfinite().all()):
        raise ValueError(
            "the logits of the linear evaluation are not finite: either the representations are not, or the training "
            "diverged and needs a lower base_lr"
        )
    own = logits.gather(1, labels[:, None])
    lower = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]  # (N, C)
    return accuracy_of_ranks(((logits > own) | ((logits == own) & lower)).sum(1), num_classes)


def linear_crop(
    image: UInt8[np.ndarray, "height width 3"], size: int, config: LinearConfig, epoch: int, image_id: int
) -> UInt8[np.ndarray, "size size 3"]:
    """A random resized crop, bilinear, flipped with probability 1/2: a function of (config.seed, epoch, image_id).

    The crop has `config.scale` of the image's area and an aspect ratio from 3/4 to 4/3; as torchvision's, it is the
    first of ten draws that lies within the image, or else central.
    """
    drawn = AugmentConfig(global_size=size, global_scale=config.scale, local_sizes=(), num_local_crops=())
    views = sample_views(drawn, config.seed, epoch, np.array([image_id]), np.array([image.shape[:2]]))
    ul_x, ul_y, lr_x, lr_y, _, _, flip = views.geo[0, 0].astype(int).tolist()
    # Channels last, which torch resizes in half the time; see `glsd.augment.geometric`.
    box = torch.from_numpy(image[ul_y:lr_y, ul_x:lr_x].copy())[None].permute(0, 3, 1, 2)
    crop = functional.interpolate(box, size=(size, size), mode="bilinear", antialias=True)[0]
    return (crop.flip(2) if flip else crop).permute(1, 2, 0).contiguous().numpy()
