"""The pretrain job: index, check, stream and train on Ray, and leave a finished run directory behind.

Every piece of a run is a pure function of its settings, its data and the step, so a run that was killed at any moment
continues from its newest complete checkpoint when the same command is given again, and ends as if nothing had happened.
"""

import itertools
import json
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.data
import ray.train
import ray.train.torch
import torch
from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchTrainer

from glsd.config import Config
from glsd.data import Index, Order, build_index, subset, write_subset
from glsd.models import Network, build_backbone
from glsd.training import (
    Metrics,
    Probe,
    TrainState,
    Unit,
    checkpoints,
    initial_state,
    load_checkpoint,
    manifest,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    train,
)
from ray_jobs.cluster import check_resources, cluster
from ray_jobs.evaluating import KnnSplit, OnlineKnn, Sources, knn_split
from ray_jobs.finishing import finish
from ray_jobs.monitor import ProgressLine, Reporter, start_monitor, watch
from ray_jobs.run_directory import RunDirectory, RunLog
from ray_jobs.settings import JobSettings
from ray_jobs.stream import MAX_UNIT_BYTES, UnitSource, received, stream, stream_options, unit_bytes

if TYPE_CHECKING:
    from ray.actor import ActorHandle


@dataclass(frozen=True)
class Run:
    """A finished run."""

    out: str
    """The run directory."""
    checkpoint: str
    """Its last checkpoint, for `glsd.load_encoder`."""
    summary: dict[str, Any]
    """Steps, losses and, where there are labels, k-NN accuracies as shares."""


@dataclass(frozen=True)
class _Plan:
    """What a training worker needs; it travels to every worker."""

    config: Config
    run: RunDirectory
    token: str
    source: UnitSource
    knn: KnnSplit | None
    monitor: "ActorHandle[Any]"
    torch_threads: int | None

    @property
    def steps_per_epoch(self) -> int:
        return self.source.order.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self.config.optim.epochs * self.steps_per_epoch


def pretrain(config: Config, data: Sources, out: str, *, knn_data: Sources | None = None, **job: Any) -> Run:
    """Pretrain on unlabelled images; start the same call again after a kill and it goes on.

    Args:
        config: the experiment.
        data: folders, lists, tars or Parquet files, local or `s3://`, `gs://`.
        out: run directory, a folder or a URI that all workers reach.
        knn_data: labelled images for the k-NN of the teacher, on which the labelled images of `data` vote; without them
            a share of `data` is tested. Labels are never trained on.
        job: fields of `JobSettings`.

    Raises:
        ValueError: a setting, the data or the run directory do not fit; the message says what would.
        NonFiniteLoss: the loss was infinite or not a number; the last good checkpoint is there.
    """
    settings = JobSettings(**job)
    run = RunDirectory(out)
    run.check_config(config)
    check_sizes(config)
    with ProgressLine() as line, run.lease(on_wait=line.phase):
        index = indexed(data, config, line)
        tested = None if knn_data is None else indexed(knn_data, config, line)
        image_ids = subset(len(index) if index.labels is None else index.labels, config.data, index.classes)
        order = Order(config.seed, len(image_ids), config.optim.batch_size, config.data.unit_size)
        if warning := order.left_out_warning():
            warnings.warn(warning, stacklevel=2)
        run.claim(config, _identity(index, tested))
        if run.finished is None:
            split = knn_split(index, tested, config.evaluation) if index.labels is not None or tested else None
            if max(checkpoints(out), default=0) < config.optim.epochs * order.steps_per_epoch:
                _train_on_ray(config, settings, run, index, image_ids, split, line)
            if len(image_ids) < len(index):
                with tempfile.NamedTemporaryFile(suffix=".csv") as file:
                    write_subset(file.name, index, image_ids)
                    run.write("subset.csv", Path(file.name).read_bytes())
            finish(run, config, index, image_ids, split, line)
        else:
            line.phase(f"{out} is finished: nothing is left to do")
    checkpoint, summary = newest_checkpoint(out), run.finished
    assert checkpoint is not None
    assert summary is not None
    return Run(out, checkpoint, summary)


def _identity(index: Index, tested: Index | None) -> dict[str, Any]:
    identity = {"sources": index.sources, "images": len(index), "digest": index.digest}
    if tested is not None:
        identity |= {"knn_sources": tested.sources, "knn_images": len(tested), "knn_digest": tested.digest}
    return identity


def check_sizes(config: Config) -> None:
    """Refuse what no run can do, before anything is started.

    Raises:
        ValueError: the backbone is unknown or cannot take the crops, or a unit is too large for the stream.
    """
    with torch.device("meta"):
        backbone = build_backbone(config.model.backbone, config.model.drop_path)
    backbone.check_crop_sizes([size for size, _ in config.augment.groups])
    if unit_bytes(config) > MAX_UNIT_BYTES:
        fitting = config.data.unit_size * MAX_UNIT_BYTES // unit_bytes(config)
        fitting = max(size for size in range(1, fitting + 1) if config.optim.batch_size % size == 0)
        raise ValueError(
            f"data.unit_size {config.data.unit_size} makes units of {unit_bytes(config) / 2**20:.0f} MiB, and the "
            f"stream takes {MAX_UNIT_BYTES / 2**20:.0f} MiB; use data.unit_size {fitting}"
        )


def indexed(sources: Sources, config: Config, line: ProgressLine) -> Index:
    """The index of the sources, with its progress shown."""
    return build_index(sources, config.data, progress=lambda count: line.phase(f"indexing {count:,} images"))


def _train_on_ray(
    config: Config,
    settings: JobSettings,
    run: RunDirectory,
    index: Index,
    image_ids: np.ndarray,
    split: KnnSplit | None,
    line: ProgressLine,
) -> None:
    line.phase("starting Ray")
    with cluster(settings):
        resources = check_resources(settings, config)
        regime = None if len(image_ids) == len(index) else ray.put(image_ids)
        source = UnitSource(config, index, regime, len(image_ids), resources.photometrics)
        monitor = start_monitor()
        assert run.token is not None
        plan = _Plan(config, run, run.token, source, split, monitor, resources.torch_threads)
        trainer = TorchTrainer(
            _train,
            train_loop_config={"plan": plan},
            scaling_config=ScalingConfig(
                num_workers=settings.workers, use_gpu=resources.gpu, resources_per_worker=resources.per_worker
            ),
            run_config=RunConfig(
                name=run.name,
                storage_path=run.storage_path,
                storage_filesystem=run.filesystem,
                failure_config=FailureConfig(  # an unschedulable start would be tried for ever by default
                    max_failures=resources.max_failures,
                    controller_failure_limit=2,  # type: ignore[call-arg] # its stub is that of the old Train
                ),
            ),
            datasets={"train": partial(_remaining_stream, plan)},
            dataset_config=DataConfig(execution_options=stream_options()),
        )
        line.phase("starting workers")
        with watch(monitor, line):
            try:
                trainer.fit()
            except TrainingFailedError as error:
                raise _cause(error) from None


def _remaining_stream(plan: _Plan) -> ray.data.Dataset:
    """The units after the newest checkpoint; Ray Train asks anew whenever it starts the workers."""
    start_step = max(checkpoints(plan.run.out), default=0)
    return stream(plan.source, start_step * plan.config.units_per_step)


def _train(loop_config: dict[str, Any]) -> None:
    """The training worker."""
    plan: _Plan = loop_config["plan"]
    config = plan.config
    if plan.torch_threads is not None:
        torch.set_num_threads(plan.torch_threads)
    device = ray.train.torch.get_device()
    shard = ray.train.get_dataset_shard("train")
    units = shard.iter_batches(batch_size=config.data.unit_size, batch_format="numpy", prefetch_batches=2)
    first, units = _peeked(received(units))
    state = initial_state(config, device)
    # The stream decides where this start continues, so data and weights are of one checkpoint.
    state.step = int(first["unit"][0]) // config.units_per_step
    if state.step:
        state.load_state_dict(load_checkpoint(checkpoints(plan.run.out)[state.step]))

    recorder = _Recorder(plan, state.step)
    probes = {} if plan.knn is None else {"knn": recorder.announced("k-NN", OnlineKnn(plan.knn, config, device))}
    if state.step == 0:
        # The teacher before training is the backbone at random initialisation: what all later figures stand beside.
        untrained: Metrics = {"step": 0}
        for probe in probes.values():
            untrained |= probe(state.teacher, 0)
        recorder.log(untrained, None)
    train(state, recorder.watched(units), config, plan.steps_per_epoch, device, recorder.log, probes)
    recorder.close()


class _Recorder:
    """A worker's way to the outside: rank 0 writes the run directory, all ranks meet in Ray Train's report."""

    def __init__(self, plan: _Plan, start_step: int) -> None:
        self._plan = plan
        self._skips: list[tuple[int, str]] = []
        self._rank = ray.train.get_context().get_world_rank()
        if self._rank == 0:
            # A fresh start also drops the line of step 0, which it writes again.
            self._log = RunLog(plan.run, resume_step=start_step or -1)
            self._reporter = Reporter(plan.monitor, plan.run.name)

    def watched(self, units: Iterator[Unit]) -> Iterator[Unit]:
        """The units, their skipped images noted on the way."""
        for unit in units:
            for skipped in unit["skips"].tolist():
                self._skips += [(image_id, reason) for image_id, reason in json.loads(skipped)]
            yield unit

    def announced(self, phase: str, probe: Probe) -> Probe:
        """The probe, with the driver told that it runs."""

        def measure(teacher: Network, step: int) -> Metrics:
            if self._rank == 0:
                self._reporter.phase(phase)
            return probe(teacher, step)

        return measure

    def log(self, metrics: Metrics, state: TrainState | None) -> None:
        """The loop's `on_log`: metrics to the run directory, the driver and Ray Train; a checkpoint if due."""
        skips = self._gathered_skips()
        if self._rank == 0:
            step = int(metrics["step"])
            for image_id, reason in skips:
                self._log.skip(image_id, self._plan.source.index.uri(image_id), reason)
            self._log.log(step, metrics)
            totals = {"total_steps": self._plan.total_steps, "epochs": self._plan.config.optim.epochs}
            self._reporter.log(metrics | totals)
            if state is not None:
                self._save(state, metrics)
            self._check_skipped(step)
        ray.train.report(metrics)

    def close(self) -> None:
        """Make the last lines durable."""
        if self._rank == 0:
            self._log.close()

    def _save(self, state: TrainState, metrics: Metrics) -> None:
        run, config = self._plan.run, self._plan.config
        if not run.holds_lease(self._plan.token):
            raise RuntimeError(f"another start has taken {run.out} over; this one, which lost its driver, ends")
        self._log.sync()
        facts = {"metrics": metrics}
        save_checkpoint(run.out, state.step, state.state_dict() | {"config": config.model_dump(mode="json")}, facts)
        saved = checkpoints(run.out)
        keep = {state.step}
        knn = {step: manifest(path)["metrics"].get("knn") for step, path in saved.items()}
        if measured := {step: value for step, value in knn.items() if value is not None}:
            keep.add(max(measured, key=lambda step: (measured[step], step)))
        if config.keep_every_epochs is not None:
            keep |= {step for step in saved if step % (config.keep_every_epochs * self._plan.steps_per_epoch) == 0}
        prune_checkpoints(run.out, keep)

    def _gathered_skips(self) -> list[tuple[int, str]]:
        mine, self._skips = self._skips, []
        if ray.train.get_context().get_world_size() == 1:
            return mine
        everyones: list[list[tuple[int, str]]] = [[] for _ in range(ray.train.get_context().get_world_size())]
        torch.distributed.all_gather_object(everyones, mine)
        return list(itertools.chain.from_iterable(everyones))

    def _check_skipped(self, step: int) -> None:
        source, data = self._plan.source, self._plan.config.data
        tried = min(step * self._plan.config.optim.batch_size + self._log.num_skipped, source.num_images)
        if tried >= min(200, source.num_images) and self._log.num_skipped > data.max_skipped * tried:
            raise ValueError(
                f"{self._log.num_skipped} of the {tried} images read so far could not be decoded, more than "
                f"data.max_skipped {data.max_skipped:.0%}; {self._plan.run.out}/skipped.jsonl lists them with reasons"
            )


def _peeked(units: Iterator[Unit]) -> tuple[Unit, Iterator[Unit]]:
    first = next(units)
    return first, itertools.chain([first], units)


def _cause(error: TrainingFailedError) -> BaseException:
    """What went wrong in a worker, without Ray's wrapping."""
    if isinstance(error, WorkerGroupError):
        return next(iter(error.worker_failures.values()), error)
    return error
