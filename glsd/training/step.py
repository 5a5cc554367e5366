"""One step of Algorithm 1: forward, loss, backward, clip, AdamW, EMA, centres, over the units of one batch."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from glsd.config import Config
from glsd.losses.objective import Losses, objective
from glsd.models.centering import mean_logits, update_centers
from glsd.models.drop_path import drop_path_keys
from glsd.models.student_teacher import head_pairs
from glsd.training.batch import Batch
from glsd.training.optimizer import clip_each, ema_update, gated_step, set_hyperparameters
from glsd.training.schedules import Schedule
from glsd.training.state import TrainState


class StepReport(NamedTuple):
    """What a step leaves on the device for the next reading; means over all images of the batch and all workers."""

    losses: Tensor
    """(4,) float32: the fields of `Losses`."""
    applied: Tensor
    """0-dim bool: all gradients and losses were finite, so the step changed the state."""


@runtime_checkable
class Units(Protocol):
    """The units of a step that are this worker's, which come one by one."""

    def __len__(self) -> int:
        """How many they are."""

    def __iter__(self) -> Iterator[Batch]:
        """Each of them once."""


def train_step(state: TrainState, units: Units, now: Schedule, config: Config) -> StepReport:
    """Algorithm 1, lines 8-18, over this worker's units; the centres and the teacher move once.

    The gradient is the mean over the B images of all workers' units, so neither the number of units nor the number of
    workers changes what is learned. A step whose loss or gradient is not finite changes no weight, moment or centre, as
    the device decides; running statistics of batch norm have been through its forward pass. The state is changed in
    place, its step too; `now` are the schedules at its step.
    """
    set_hyperparameters(state.optimizer, now.lr, now.weight_decay)
    state.optimizer.zero_grad(set_to_none=True)

    means: list[Tensor] = []
    for index, batch in enumerate(units):
        with _gradients_stay_local(state.replica, until=index == len(units) - 1):
            losses, bottlenecks = unit_losses(state, batch, now.teacher_temperature, config)
            (losses.total / len(units)).backward()
        means.append(torch.cat([torch.stack(losses).detach().float(), bottlenecks]))
    mean = mean_over_workers(torch.stack(means).mean(0))
    mean_losses, mean_bottlenecks = mean[: len(Losses._fields)], mean[len(Losses._fields) :]

    if now.last_layer_is_frozen:
        # None and not zero: AdamW then neither decays these parameters nor starts their moments.
        for parameter in state.student.last_layer_parameters():
            parameter.grad = None
    applied = clip_each(state.student.parameters(), config.optim.clip_grad) & mean_losses.isfinite().all()
    gated_step(state.optimizer, applied)
    # The centres' logits are the teacher's of this step, so they come before its update.
    heads = state.teacher.heads
    logits = {
        level: mean_logits(u, head.last_layer_weight())
        for (level, head), u in zip(heads.items(), mean_bottlenecks.chunk(len(heads)), strict=True)
    }
    ema_update(state.teacher, state.student, now.teacher_momentum, applied)
    state.centers = update_centers(state.centers, logits, config.objective.center_momentum, applied)
    state.step += 1
    return StepReport(mean_losses, applied)


def unit_losses(state: TrainState, batch: Batch, teacher_temperature: float, config: Config) -> tuple[Losses, Tensor]:
    """The unit's losses, and the teacher's mean bottlenecks, head by head."""
    tau_s = config.objective.student_temperature
    keys = drop_path_keys(config.seed, state.step, batch.image_ids, batch.geo.shape[1])
    with autocast(config, batch.geo.device):
        with torch.no_grad():
            (teacher_views,) = state.teacher(batch.crops[:1])
        student_views = state.replica(batch.crops, keys)
        heads = head_pairs(state.student, state.teacher, state.centers, tau_s, teacher_temperature)
        losses = objective(student_views, teacher_views, batch.geo, heads, config.objective)
    return losses, torch.cat([u.float().flatten(0, -2).mean(0) for u in teacher_views.u.values()])


def autocast(config: Config, device: torch.device) -> AbstractContextManager[None]:
    """The forward pass's precision: bfloat16 where it is asked for, or where the device has it in hardware."""
    bfloat16 = config.optim.precision == "bfloat16" or (
        config.optim.precision == "auto"
        and device.type == "cuda"
        and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    return torch.autocast(device.type, torch.bfloat16) if bfloat16 else nullcontext()


def mean_over_workers(values: Tensor) -> Tensor:
    """Mean over the workers of a process group, in place; a single worker does not start NCCL."""
    if torch.distributed.is_initialized() and (world_size := torch.distributed.get_world_size()) > 1:
        torch.distributed.all_reduce(values)
        values /= world_size
    return values


def mean_metrics(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Numbers of the device as means over the workers, so that all of them judge alike; the host waits for them."""
    stacked = mean_over_workers(torch.stack([value.float() for value in values.values()]))
    return dict(zip(values, stacked.tolist(), strict=True))


def _gradients_stay_local(student: nn.Module, until: bool) -> AbstractContextManager[None]:
    """Accumulate without talking to the other workers, except for the step's last unit."""
    return nullcontext() if until or not isinstance(student, DistributedDataParallel) else student.no_sync()
