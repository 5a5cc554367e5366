"""Student and teacher (Sec. 3.3, Algorithm 1): one architecture, one initialisation, the teacher a moving average.

The teacher drops no paths and gets no gradient. Like the authors' it stays in training mode, so that batch norm
normalises its views with their own statistics; the running statistics that an evaluation uses are the student's.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from glsd.config import Config
from glsd.models.backbone import Backbone, build_backbone
from glsd.models.centering import LastLayers
from glsd.models.head import Head


class ViewOutputs(NamedTuple):
    """What a network gives for the views of one crop size: B images, V views, H x W locations."""

    z_bar: Float[Tensor, "images views dim"]
    """Pooled backbone features z̄."""
    z: Float[Tensor, "images views height width dim"]
    """Dense backbone features z."""
    u_bar: Float[Tensor, "images views bottleneck"]
    """Bottleneck of the head h̄ on z̄, of unit length."""
    u: Float[Tensor, "images views height width bottleneck"] | None
    """Bottleneck of the dense head h on z; None in the vanilla setting, which has no such head."""


class Network(nn.Module):
    """Backbone f and heads h̄ and h."""

    def __init__(self, backbone: Backbone, head: Head, dense_head: Head | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.dense_head = dense_head

    def forward(
        self,
        crops: Sequence[Float[Tensor, "images _ 3 _ _"]],
        drop_path_keys: Int64[Tensor, "images views"] | None = None,
    ) -> list[ViewOutputs]:
        """One `ViewOutputs` for each group of equal crops, in order; every group is a batch of its own to batch norm.

        `drop_path_keys` has a column for each view over all groups; without them no path is dropped.
        """
        outputs, first = [], 0
        for group in crops:
            views = group.shape[:2]
            keys = None if drop_path_keys is None else drop_path_keys[:, first : first + views[1]].flatten()
            z_bar, z = self.backbone(group.flatten(0, 1), keys)
            u_bar = self.head(z_bar).unflatten(0, views)
            u = None if self.dense_head is None else self.dense_head(z).unflatten(0, views)
            outputs.append(ViewOutputs(z_bar.unflatten(0, views), z.unflatten(0, views), u_bar, u))
            first += views[1]
        return outputs

    def last_layer_parameters(self) -> list[nn.Parameter]:
        """The trained parameters of the heads' last layers."""
        heads = [head for head in (self.head, self.dense_head) if head is not None]
        return [parameter for head in heads for parameter in head.last_layer_parameters()]


def build_student_teacher(config: Config) -> tuple[Network, Network]:
    """Student and teacher with equal weights, a function of the configuration alone, on the CPU.

    The settings of Table 1 share the weights of f and h̄ under one seed. Random numbers of the caller are neither used
    nor moved on.

    Raises:
        ValueError: the backbone does not exist, or cannot take the crops of the configuration.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Not torch.manual_seed, which would also seed the accelerators.
        torch.default_generator.manual_seed(config.seed)
        student = _build_network(config)
    student.backbone.check_crop_sizes(size for size, _ in config.augment.groups)
    return student, copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def ema_update(
    teacher: Network, student: Network, momentum: float | Tensor, gate: Bool[Tensor, ""] | None = None
) -> None:
    """Parameters of the teacher <- momentum * teacher + (1 - momentum) * student, in place (Algorithm 1, line 18).

    Statistics of batch norm are copied. A false `gate` changes nothing. Nothing waits for the device.
    """
    weight: float | Tensor = 1 - momentum
    if gate is not None:
        weight = weight * gate  # the student is finite even then: the same gate holds back its own update
    averages: list[Tensor] = list(teacher.parameters())
    targets: list[Tensor] = list(student.parameters())
    # One pass without a copy of the parameters; in this overload the weights may lie on the device.
    torch._foreach_lerp_(averages, targets, [weight] * len(averages) if isinstance(weight, Tensor) else weight)
    for mine, theirs in zip(_statistics(teacher), _statistics(student), strict=True):
        mine.copy_(theirs if gate is None else torch.where(gate, theirs, mine))


def last_layers(student: Network, teacher: Network) -> LastLayers:
    """The last-layer weights that the objective multiplies bottlenecks with; the teacher's carry no gradient."""
    return LastLayers(
        student.head.last_layer_weight(),
        None if student.dense_head is None else student.dense_head.last_layer_weight(),
        teacher.head.last_layer_weight(),
        None if teacher.dense_head is None else teacher.dense_head.last_layer_weight(),
    )


def _build_network(config: Config) -> Network:
    model = config.model
    backbone = build_backbone(model.backbone, model.drop_path)
    shape = (model.hidden_dim, model.bottleneck_dim, model.num_prototypes, model.norm_last_layer)
    head = Head(backbone.dim, *shape)
    dense_head = None if config.objective.setting == "vanilla" else Head(backbone.dim, *shape)
    return Network(backbone, head, dense_head)


def _statistics(network: Network) -> Iterator[Tensor]:
    """Buffers that are saved; masks and other derived ones differ with the sizes a network has seen."""
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield buffer
