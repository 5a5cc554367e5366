"""All that changes during a run, and all that a resume needs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from glsd.config import Config
from glsd.models.centering import Centers
from glsd.models.student_teacher import Network, build_student_teacher
from glsd.training.optimizer import build_optimizer


@dataclass
class TrainState:
    """Student, teacher, optimiser, centres, and the number of steps done."""

    student: Network
    teacher: Network
    optimizer: torch.optim.AdamW
    centers: Centers
    step: int = 0
    replica: nn.Module = field(init=False)
    """The student as a worker calls it: in DistributedDataParallel where there are several."""

    def __post_init__(self) -> None:
        self.replica = self.student

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only."""
        return {
            "step": self.step,
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "centers": dict(self.centers),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self.step = state["step"]
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        for weight, moments in self.optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq"):  # the fused AdamW takes it for granted that they lie as the weight
                moments[name] = torch.empty_like(weight).copy_(moments[name])
        self.centers = {level: state["centers"][level].to(center.device) for level, center in self.centers.items()}


def initial_state(config: Config, device: torch.device, init: Mapping[str, torch.Tensor] | None = None) -> TrainState:
    """theta_s = theta_t = theta_init (Algorithm 1, line 1), centres at zero.

    `init` is the `state_dict` of a backbone that both start from; the heads start as they would without it.
    """
    student, teacher = build_student_teacher(config)
    if init is not None:
        student.backbone.load_state_dict(init)
        teacher.backbone.load_state_dict(init)
    for network in (student, teacher):
        network.to(device)
        for weight in network.parameters():
            if weight.ndim == 4:  # convolutions of such weights keep their maps channels last
                weight.data = weight.data.to(memory_format=torch.channels_last)
    centers = {level: torch.zeros(config.model.num_prototypes, device=device) for level in student.heads}
    return TrainState(student, teacher, build_optimizer(student), centers)
