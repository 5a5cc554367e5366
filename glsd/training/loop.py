"""The loop: units in, trained state out; it says when to log, to probe and to save, and knows no cluster."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from glsd.config import Config
from glsd.models.student_teacher import Network
from glsd.training.batch import Batch, Unit, to_device
from glsd.training.memory import is_out_of_memory, out_of_memory_advice
from glsd.training.schedules import schedule
from glsd.training.state import TrainState
from glsd.training.step import StepReport, train_step

Metrics = dict[str, float]


class NonFiniteLoss(RuntimeError):
    """A loss or a gradient was infinite or not a number.

    That step changed no weight, but later ones up to the reading may have, and batch norm's running statistics have
    seen it: the last good state is the last checkpoint.
    """


class Reading(NamedTuple):
    """The loop at a step where something is due; every loss up to then is known to be finite."""

    metrics: Metrics
    """Means of the losses since the last reading, speed, and the schedules of the step just made."""
    checkpoint_is_due: bool
    probe_is_due: bool
    """Whether the teacher is to be measured."""
    last_unit: Callable[[], Batch]
    """This worker's last unit of the step, made again, so that no second one stays on the device between readings."""


def steps(
    state: TrainState, units: Iterator[Unit], config: Config, steps_per_epoch: int, device: torch.device
) -> Iterator[Reading]:
    """Train from `state.step` to the end of the last epoch; what is done between two readings costs no measured time.

    With an initialised process group this is one of its workers: rank r of W receives the units i * W + r, and all
    train the student and the teacher of rank 0. Readings come at the same steps on all of them. On a CPU with several
    threads, call `determinism.same_sums` once before, if the results are to be the same bits each time.

    The state, which lies on `device`, is changed in place. `units` are this worker's from `state.step` on, in order;
    `steps_per_epoch` is N // B.

    Raises:
        NonFiniteLoss: names the step, the parts of the loss and the images since the last reading.
        torch.OutOfMemoryError: names the unit size that would fit.
    """
    total_steps = config.optim.epochs * steps_per_epoch
    state.replica = _distributed(state.student, state.teacher, device)
    received = _Received(units, state.step, config, device)
    reports: list[StepReport] = []
    interval = _Interval(state.step)

    while state.step < total_steps:
        now, report = schedule(state.step, config, steps_per_epoch), None
        try:
            report = train_step(state, received, now, config)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if report is None:  # after the handler, whose traceback would keep the failed step's tensors alive
            raise torch.OutOfMemoryError(out_of_memory_advice(state, received.last, config))
        reports.append(report)

        checkpoint = _checkpoint_due(state.step, config, steps_per_epoch)
        probe = _probe_due(state.step, config, steps_per_epoch)
        if checkpoint or probe or state.step % config.log_every_steps == 0:
            losses = _read(reports, state.step, received.image_ids)
            if config.objective.setting == "vanilla":
                del losses["loss_local"], losses["matched"]  # there is neither
            speed = interval.speed(state.step, total_steps, config.optim.batch_size, received.seconds_waited)
            scheduled = {name: value for name, value in now._asdict().items() if name != "last_layer_is_frozen"}
            metrics = {"step": state.step} | losses | scheduled | speed
            yield Reading(metrics, checkpoint, probe, received.last_batch)
            reports.clear()
            received.restart()
            interval.restart(state.step)


def _checkpoint_due(step: int, config: Config, steps_per_epoch: int) -> bool:
    return (
        step % (config.checkpoint_every_epochs * steps_per_epoch) == 0
        or step == config.optim.epochs * steps_per_epoch
        or (config.checkpoint_every_steps is not None and step % config.checkpoint_every_steps == 0)
    )


def _probe_due(step: int, config: Config, steps_per_epoch: int) -> bool:
    every = config.evaluation.knn_every_epochs
    return step == config.optim.epochs * steps_per_epoch or (every > 0 and step % (every * steps_per_epoch) == 0)


def _read(reports: Sequence[StepReport], step: int, image_ids: Sequence[int]) -> Metrics:
    """Mean losses since the last reading; the one place where the host waits for the device."""
    values = torch.stack([torch.cat([report.losses, report.applied.float()[None]]) for report in reports]).cpu()
    losses, applied = values[:, :-1], values[:, -1].bool()
    if not applied.all():
        first = int((~applied).nonzero()[0])
        parts = ", ".join(f"{name} {float(value):g}" for name, value in zip(_LOSSES, losses[first], strict=True))
        raise NonFiniteLoss(
            f"the loss or its gradient was not finite at step {step - len(reports) + first + 1} ({parts}); "
            f"it changed no weight. Images since the last reading: {_everyones(image_ids)}. "
            "A lower optim.base_lr or a longer optim.warmup_epochs often helps; so does looking at these images."
        )
    return dict(zip(_LOSSES, losses.mean(0).tolist(), strict=True))


_LOSSES = ("loss", "loss_global", "loss_local", "matched")
"""The fields of `Losses` as metrics."""


def _everyones(image_ids: Sequence[int]) -> list[int]:
    """The images of all workers, each of which found the same step not to be finite."""
    if not torch.distributed.is_initialized():
        return sorted(set(image_ids))
    gathered: list[Sequence[int]] = [[]] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, image_ids)
    return sorted({image_id for worker in gathered for image_id in worker})


class _Received:
    """This worker's units of one step after another: which came last, whose images, how long the loop waited."""

    def __init__(self, units: Iterator[Unit], first_step: int, config: Config, device: torch.device):
        self._units, self._config, self._device = units, config, device
        self._rank, self._world_size = 0, 1
        if torch.distributed.is_initialized():
            self._rank, self._world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self._next = first_step * len(self)
        self.last: Unit = {}
        self.restart()

    def __len__(self) -> int:
        """Units of a step."""
        return self._config.units_per_step // self._world_size

    def __iter__(self) -> Iterator[Batch]:
        return (self._next_batch() for _ in range(len(self)))

    def restart(self) -> None:
        self.seconds_waited = 0.0
        self.image_ids: list[int] = []

    def _next_batch(self) -> Batch:
        start = time.perf_counter()
        self.last = next(self._units)
        self.seconds_waited += time.perf_counter() - start
        expected = self._next * self._world_size + self._rank
        assert np.all(self.last["unit"] == expected), f"unit {self.last['unit']} came in place of {expected}"
        self._next += 1
        self.image_ids += self.last["image_id"].tolist()
        return self.last_batch()

    def last_batch(self) -> Batch:
        return to_device(self.last, self._config.augment, self._device)


class _Interval:
    """Speed since the last reading; the time that probes and checkpoints take does not count."""

    def __init__(self, step: int):
        self.seconds_per_step: float | None = None
        self.restart(step)

    def restart(self, step: int) -> None:
        self._step, self._start = step, time.perf_counter()

    def speed(self, step: int, total_steps: int, batch_size: int, seconds_waited: float) -> Metrics:
        seconds = time.perf_counter() - self._start
        latest = seconds / (step - self._step)
        # A slow mean: the first interval warms caches up, and a single interval is noisy.
        self.seconds_per_step = latest if self.seconds_per_step is None else 0.7 * self.seconds_per_step + 0.3 * latest
        return {
            "images_per_s": batch_size / latest,
            "data_wait": seconds_waited / seconds,
            "seconds_left": (total_steps - step) * self.seconds_per_step,
        }


def _distributed(student: Network, teacher: Network, device: torch.device) -> nn.Module:
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return student
    _broadcast(teacher)
    if device.type == "cuda":
        # gloo has no synchronised batch norm: on CPUs each worker normalises by its own unit.
        convert_sync_batchnorm(student)
        convert_sync_batchnorm(teacher)
        return DistributedDataParallel(student, device_ids=[device])
    return DistributedDataParallel(student)


def _broadcast(network: Network) -> None:
    """Give all workers the parameters and buffers of rank 0, as DistributedDataParallel does for the student."""
    for tensor in network.state_dict().values():
        value = tensor.contiguous()
        torch.distributed.broadcast(value, 0)
        tensor.copy_(value)
