"""A training worker's way to the outside, and what it is told to do."""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Self

import ray.train
import torch

from glsd.config import Config
from glsd.data.splits import LabelledSplit
from glsd.data.units import UnitSource
from glsd.runs.checkpoints import checkpoints, manifest, prune_checkpoints, save_checkpoint
from glsd.runs.directory import RunDirectory
from glsd.runs.log import SKIPPED, RunLog
from glsd.runs.sweep import sweep_and_trial
from glsd.runs.trackers import Logger, external_loggers
from glsd.training.batch import Unit
from glsd.training.loop import Metrics
from glsd.training.state import TrainState
from ray_jobs.cluster.files import SharedFiles
from ray_jobs.cluster.monitor import Handle, Reporter
from ray_jobs.workers.making import Meter, Received, stream_metrics


@dataclass(frozen=True)
class Plan:
    """What a training worker needs; it travels to every worker."""

    config: Config
    run: RunDirectory
    token: str
    source: UnitSource
    files: SharedFiles
    """The indexes' files, for nodes that lack them."""
    knn: LabelledSplit | None
    monitor: Handle
    torch_threads: int | None
    loggers: tuple[Logger, ...] = ()

    @property
    def steps_per_epoch(self) -> int:
        """N // B."""
        return self.source.order.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.optim.epochs * self.steps_per_epoch


def kept_steps(knn: Mapping[int, float | None], every: int | None) -> set[int]:
    """Of the steps with a checkpoint, and the k-NN of each: the last, the best (the later of equals), and all `every`.

    >>> sorted(kept_steps({10: 0.3, 20: 0.5, 30: 0.5, 40: 0.4, 50: None}, every=None))
    [30, 50]
    >>> sorted(kept_steps({10: 0.3, 20: 0.2, 30: None, 40: 0.1}, every=20))
    [10, 20, 40]
    """
    keep = {max(knn)}
    if measured := {step: value for step, value in knn.items() if value is not None}:
        keep.add(max(measured, key=lambda step: (measured[step], step)))
    return keep | {step for step in knn if every is not None and step % every == 0}


def too_many_skipped(num_skipped: int, num_read: int, num_images: int, max_skipped: float) -> bool:
    """Whether more than the allowed share of the images read so far was skipped; a few say nothing about the rest.

    >>> too_many_skipped(21, 200, 5000, 0.1), too_many_skipped(20, 200, 5000, 0.1), too_many_skipped(99, 199, 5000, 0.1)
    (True, False, False)
    >>> too_many_skipped(5, 40, 40, 0.1)  # all that there are
    True
    """
    return num_read >= min(200, num_images) and num_skipped > max_skipped * num_read


class _News(NamedTuple):
    """What a worker has met since the last time."""

    skips: list[tuple[int, str]]
    """The images that could not be decoded, and why."""
    received: Received
    is_stopping: bool
    """Whether its driver was asked to end the run."""
    gpu_bytes: int
    """The most memory that tensors had on its GPU up to now; 0 without one."""


class Recorder:
    """A worker's way to the outside: rank 0 writes the run directory, all ranks meet in Ray Train's report."""

    def __init__(self, plan: Plan, start_step: int) -> None:
        self._plan = plan
        self._skips: list[tuple[int, str]] = []
        self._noticed: ray.train.PreemptionInfo | None = None
        self._meter = Meter()
        self._rank = ray.train.get_context().get_world_rank()
        if self._rank == 0:
            # A fresh start also drops the line of step 0, which it writes again.
            self._reporter = Reporter(plan.monitor, *sweep_and_trial(plan.run))
            self._reporter.happened("logged", "checkpoint")  # nothing has been done since
            external = external_loggers(plan.loggers, plan.run, plan.config, self._reporter.note)
            self._log = RunLog(plan.run, resume_step=start_step or -1, external=external)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Make the last lines durable, and have the driver know them."""
        if self._rank == 0:
            try:
                self._log.close(failed=kind is not None)
            finally:
                self._reporter.close()

    def watched(self, units: Iterator[Unit]) -> Iterator[Unit]:
        """The units, their skipped images and how they were made noted on the way."""
        for unit in units:
            self._meter.add(unit)
            for skipped in unit["skips"].tolist():
                self._skips += [(image_id, reason) for image_id, reason in json.loads(skipped)]
            yield unit

    def announce(self, phase: str) -> None:
        """Tell the driver what this worker does now."""
        if self._rank == 0:
            self._reporter.phase(phase)

    def warn(self, text: str) -> None:
        """Tell the driver what its user should still see at the end."""
        if self._rank == 0:
            self._reporter.note(text)

    def log(self, metrics: Metrics, state: TrainState, *, save: bool) -> bool:
        """These metrics and the stream's to the run directory, the driver and Ray Train; and a checkpoint of the state,
        if one is due, if a node will be taken away, or if the run is to end, which it then returns.
        """
        everyones = self._gathered()
        is_stopping = any(worker.is_stopping for worker in everyones)
        save = state.step > 0 and (save or is_stopping or self._is_warned())
        if self._rank == 0:
            step = int(metrics["step"])
            for image_id, reason in itertools.chain.from_iterable(worker.skips for worker in everyones):
                self._log.skip(step, image_id, self._plan.source.index.uri(image_id), reason)
            metrics = metrics | stream_metrics([worker.received for worker in everyones])
            metrics |= {"workers": len(everyones), "skipped": self._log.num_skipped}
            if gpu_bytes := max(worker.gpu_bytes for worker in everyones):
                metrics["gpu_bytes"] = gpu_bytes
            self._log.log(step, metrics)
            totals = {"total_steps": self._plan.total_steps, "epochs": self._plan.config.optim.epochs}
            self._reporter.log(metrics | totals)
            if save:
                self._save(state, metrics)
            self._check_skipped(step)
        if save:
            ray.train.report(metrics)  # a barrier of all workers
        return is_stopping

    def _save(self, state: TrainState, metrics: Metrics) -> None:
        run, config = self._plan.run, self._plan.config
        self._log.sync()
        facts = {"metrics": metrics}
        content = state.state_dict() | {"config": config.model_dump(mode="json")}
        save_checkpoint(run.location, state.step, content, facts, partial(run.holds_lease, self._plan.token))
        self._reporter.happened("checkpoint")
        saved = checkpoints(run.location)
        knn = {step: manifest(path).metrics.get("knn") for step, path in saved.items()}
        every = config.keep_every_epochs and config.keep_every_epochs * self._plan.steps_per_epoch
        prune_checkpoints(run.location, kept_steps(knn, every))

    def _is_warned(self) -> bool:
        """Whether Ray has learnt, since the last time, that a node of the workers will be taken away."""
        before, notice = self._noticed, ray.train.get_preemption_info()
        self._noticed = notice or before
        if notice in (None, before):
            return False
        self.warn("a node will be taken away; a checkpoint is saved now, and the run continues until the node is gone")
        return True

    def _gathered(self) -> "list[_News]":
        """What each worker has met since the last time."""
        is_stopping = self._rank == 0 and self._reporter.is_stopping()
        mine = _News(self._skips, self._meter.read(), is_stopping, torch.cuda.max_memory_allocated())
        self._skips = []
        everyones = [mine] * ray.train.get_context().get_world_size()
        if len(everyones) > 1:
            torch.distributed.all_gather_object(everyones, mine)
        return everyones

    def _check_skipped(self, step: int) -> None:
        source, data, num_skipped = self._plan.source, self._plan.config.data, self._log.num_skipped
        num_read = min(step * self._plan.config.optim.batch_size + num_skipped, source.num_images)
        if too_many_skipped(num_skipped, num_read, source.num_images, data.max_skipped):
            raise ValueError(
                f"{num_skipped} of the {num_read} images read so far could not be decoded, more than "
                f"data.max_skipped {data.max_skipped:.0%}; {self._plan.run.uri(SKIPPED)} lists them with reasons"
            )
