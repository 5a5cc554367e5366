"""What changes all weights at once: the clip, AdamW with the paper's parameter groups (Sec. 4.2), the moving average.

`torch._foreach_*` and an optimiser's `found_inf` have no public form: one kernel for all tensors, and a step that the
device may skip without the host waiting for it. Both are used in this file only.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Bool
from torch import Tensor, nn


def build_optimizer(student: nn.Module) -> torch.optim.AdamW:
    """AdamW over two groups: tensors of two or more dimensions decay, biases and other vectors do not.

    The learning rate and the decay are set at every step, see `set_hyperparameters`.
    """
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [parameter for parameter in trained if parameter.ndim >= 2]},
            {"params": [parameter for parameter in trained if parameter.ndim < 2]},
        ],
        betas=(0.9, 0.999),
        eps=1e-8,
        fused=True,
    )


def set_hyperparameters(optimizer: torch.optim.Optimizer, learning_rate: float, weight_decay: float) -> None:
    """Set this step's values of the schedules."""
    decayed, plain = optimizer.param_groups
    decayed["lr"] = plain["lr"] = learning_rate
    decayed["weight_decay"] = weight_decay
    plain["weight_decay"] = 0.0


def clip_each(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Scale each tensor's gradient to at most `max_norm`, one by one and not over the global norm.

    A 0-dim boolean tensor on their device tells whether all of them are finite.
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.stack(torch._foreach_norm(grads))
    if max_norm is not None:
        scale = (max_norm / (norms + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(grads, scale.unbind())
    return norms.isfinite().all()


def gated_step(optimizer: torch.optim.Optimizer, gate: Tensor) -> None:
    """An optimiser step that happens only where the device finds `gate` true; the host does not wait for it.

    Fused optimisers read `found_inf` as a gradient scaler sets it: with 1 nothing changes, not even step counts.
    """
    optimizer.found_inf = (~gate).to(torch.float32)  # type: ignore[attr-defined]
    optimizer.step()


@torch.no_grad()
def ema_update(
    teacher: nn.Module, student: nn.Module, momentum: float | Tensor, gate: Bool[Tensor, ""] | None = None
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


def _statistics(network: nn.Module) -> list[Tensor]:
    """The buffers that are saved. Others, such as masks, differ with the sizes of crops that a network has seen."""
    saved = network.state_dict().keys()
    return [buffer for name, buffer in network.named_buffers() if name in saved]
