"""Student and teacher (Sec. 3.3, Algorithm 1): one architecture, one initialisation, the teacher a moving average.

The teacher drops no paths and gets no gradient. Like the authors' it stays in training mode, so that batch norm
normalises its views with their own statistics; the running statistics that an evaluation uses are the student's.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from glsd.config import Config
from glsd.losses.outputs import HeadPair, Level, ViewOutputs
from glsd.models.backbone import Backbone, build_backbone
from glsd.models.head import Head


class Network(nn.Module):
    """Backbone f and heads h̄ and h."""

    heads: Mapping[Level, Head]

    def __init__(self, backbone: Backbone, heads: Mapping[Level, Head]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)  # type: ignore[assignment, arg-type] # whose annotation forgets the kind of module

    def forward(
        self,
        crops: Sequence[Float[Tensor, "images _ 3 _ _"]],
        drop_path_keys: Int64[Tensor, "images views"] | None = None,
    ) -> list[ViewOutputs]:
        """One `ViewOutputs` for each group of equal crops, in order; batch norm sees each group as its own batch.

        `drop_path_keys` has a column for each view over all groups; without them no path is dropped.
        """
        outputs, first = [], 0
        for group in crops:
            views = group.shape[:2]
            keys = None if drop_path_keys is None else drop_path_keys[:, first : first + views[1]].flatten()
            z_bar, z = self.backbone(group.flatten(0, 1), keys)
            u = {level: head(z_bar if level == "global" else z) for level, head in self.heads.items()}
            outputs.append(
                ViewOutputs(
                    z_bar.unflatten(0, views),
                    z.unflatten(0, views),
                    {level: rows.unflatten(0, views) for level, rows in u.items()},
                )
            )
            first += views[1]
        return outputs

    def last_layer_parameters(self) -> list[nn.Parameter]:
        """The trained parameters of the heads' last layers."""
        return [parameter for head in self.heads.values() for parameter in head.last_layer_parameters()]


def build_student_teacher(config: Config) -> tuple[Network, Network]:
    """Student and teacher with equal weights, a function of only the configuration, on the CPU.

    The settings of Table 1 share the weights of f and h̄ under one seed. Random numbers of the caller are neither used
    nor moved on.

    Raises:
        ValueError: the backbone does not exist, or cannot take the crops of the configuration.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Not torch.manual_seed, which would also seed the accelerators.
        torch.default_generator.manual_seed(config.seed)
        model = config.model
        backbone = build_backbone(model.backbone, model.drop_path)
        shape = (model.hidden_dim, model.bottleneck_dim, model.num_prototypes, model.norm_last_layer)
        levels: tuple[Level, ...] = ("global",) if config.objective.setting == "vanilla" else ("global", "dense")
        student = Network(backbone, {level: Head(backbone.dim, *shape) for level in levels})
    student.backbone.check_crop_sizes(size for size, _ in config.augment.groups)
    return student, copy.deepcopy(student).requires_grad_(False)


def head_pairs(
    student: Network, teacher: Network, centers: Mapping[Level, Tensor], tau_s: float, tau_t: float
) -> dict[Level, HeadPair]:
    """The last layers and centre of each head, which the objective turns bottlenecks into distributions with."""
    return {
        level: HeadPair(
            head.last_layer_weight(), teacher.heads[level].last_layer_weight(), centers[level], tau_s, tau_t
        )
        for level, head in student.heads.items()
    }
