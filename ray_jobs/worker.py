"""The training worker: Ray Data's units in, glsd's loop, and the run directory out."""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import ray
import ray.train
import ray.train.torch
import torch

from glsd.config import Config
from glsd.data.splits import LabelledSplit
from glsd.data.units import UnitSource
from glsd.evaluation.collapse import collapse_metrics
from glsd.evaluation.online_knn import OnlineKnn
from glsd.evaluation.verdict import Collapsed, CollapseWatch
from glsd.runs.checkpoints import checkpoints, load_checkpoint, manifest, prune_checkpoints, save_checkpoint
from glsd.runs.directory import RunDirectory
from glsd.runs.log import SKIPPED, RunLog, read_metrics
from glsd.runs.trackers import Logger, external_loggers
from glsd.training.batch import Unit
from glsd.training.loop import Metrics, NonFiniteLoss, Reading, steps
from glsd.training.state import TrainState, initial_state
from glsd.training.step import mean_metrics
from ray_jobs.initial_weights import read_initial_weights
from ray_jobs.monitor import Reporter
from ray_jobs.settings import num_cores
from ray_jobs.stream import Files, place_files, received

if TYPE_CHECKING:
    from ray.actor import ActorHandle


FAILURE = "failure.json"
"""Why the workers of a start failed: the token of its lease, the kind of the error and its message."""
_FAILURES = {kind.__name__: kind for kind in (ValueError, NonFiniteLoss, Collapsed, torch.OutOfMemoryError)}


@dataclass(frozen=True)
class Plan:
    """What a training worker needs; it travels to every worker."""

    config: Config
    run: RunDirectory
    token: str
    source: UnitSource
    files: Files
    """The indexes' files, for nodes that lack them."""
    knn: LabelledSplit | None
    monitor: "ActorHandle[Any]"
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


def train_worker(plan: Plan) -> None:
    """One worker of a run, from the newest checkpoint to the end.

    Raises:
        ValueError: it does not reach the driver's run directory, or images or settings cannot be used.
    """
    plan.run.check_reached(plan.token)
    failure = json.loads(plan.run.read(FAILURE) or b"{}")
    if failure.get("token") == plan.token:
        # A worker that is started again would only meet the same data or the same loss once more.
        raise _FAILURES[failure["kind"]](failure["message"])
    place_files(plan.files)
    if plan.torch_threads is not None:
        torch.set_num_threads(plan.torch_threads)
    try:
        _train(plan, ray.train.torch.get_device())
    except tuple(_FAILURES.values()) as error:
        kind = next(name for name, kind in _FAILURES.items() if isinstance(error, kind))
        plan.run.write(FAILURE, json.dumps({"token": plan.token, "kind": kind, "message": str(error)}).encode())
        raise


def _train(plan: Plan, device: torch.device) -> None:
    config = plan.config
    shard = ray.train.get_dataset_shard("train")
    units = shard.iter_batches(batch_size=config.data.unit_size, batch_format="numpy", prefetch_batches=2)
    arriving = received(units)
    first = next(arriving, None)
    if first is None:
        return  # the last checkpoint is that of the last step
    # The stream decides where this start continues, so data and weights are of one checkpoint.
    start_step = int(first["unit"][0]) // config.units_per_step
    state = initial_state(config, device, None if start_step else read_initial_weights(plan.run))
    state.step = start_step
    if state.step:
        checkpoint = checkpoints(plan.run.location)[state.step]
        content = load_checkpoint(checkpoint)
        if other := Config.model_validate(content["config"]).differences(config):
            raise ValueError(
                f"{checkpoint} is of other settings ({', '.join(other)}); delete it, it is not of this run"
            )
        state.load_state_dict(content)

    with _Recorder(plan, state.step) as recorder:
        if state.step:
            recorder.announce(f"resuming at step {state.step:,} of {plan.total_steps:,}")
        knn = _knn(plan, recorder, device)
        if state.step == 0:
            # The teacher before training is the backbone as it was initialised: what all later figures stand beside.
            recorder.log({"step": 0} | knn(state), None)
        alarm = None if config.collapse == "ignore" else _CollapseAlarm(plan, recorder, start_step)
        watched = recorder.watched(itertools.chain([first], arriving))
        for reading in steps(state, watched, config, plan.steps_per_epoch, device):
            metrics = reading.metrics
            if alarm is not None:
                metrics |= alarm.measures(state, reading)
            if reading.probe_is_due:
                metrics |= knn(state)
            if alarm is not None:
                metrics |= alarm.verdict(metrics)
            recorder.log(metrics, state if reading.checkpoint_is_due else None)
            if alarm is not None:
                alarm.sound(metrics)


def _knn(plan: Plan, recorder: "_Recorder", device: torch.device) -> Callable[[TrainState], Metrics]:
    """The k-NN of the teacher, announced to the driver; nothing where there are no labelled images."""
    if plan.knn is None:
        return lambda _: {}
    # A worker that was given no number of threads shares its node's cores with the others there.
    num_threads = plan.torch_threads or num_cores() // ray.train.get_context().get_local_world_size() or 1
    probe = OnlineKnn(plan.knn, plan.config, device, num_threads)

    def measure(state: TrainState) -> Metrics:
        recorder.announce("k-NN")
        return probe(state.teacher)

    return measure


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


class _CollapseAlarm:
    """Looks for a collapse (Sec. 4.6) whenever metrics are logged, and warns or stops as `collapse` says.

    The readings are means over the workers, so that all of them judge alike. Those that were logged up to `start_step`
    are judged again, so a run that resumes finds a collapse where it would have found it.
    """

    def __init__(self, plan: Plan, recorder: "_Recorder", start_step: int) -> None:
        self._plan, self._recorder = plan, recorder
        self._watch = CollapseWatch(plan.config)
        for line in read_metrics(plan.run):
            if 0 < line["step"] <= start_step:
                self._watch.judge({key: math.nan if value is None else value for key, value in line.items()})
        self._has_warned = False

    def measures(self, state: TrainState, reading: Reading) -> Metrics:
        """The cheap measures of a collapse, of the last unit."""
        config, temperature = self._plan.config, reading.metrics["teacher_temperature"]
        return mean_metrics(collapse_metrics(state.teacher, reading.last_unit(), state.centers, config, temperature))

    def verdict(self, metrics: Metrics) -> Metrics:
        """What the measures up to now say."""
        return self._watch.judge(metrics)

    def sound(self, metrics: Metrics) -> None:
        """Warn or stop where the teacher has collapsed; the reading that stops a run has been recorded."""
        if not metrics.get("collapsed"):
            return
        found = f"the teacher has collapsed at step {metrics['step']:,} ({'; '.join(self._watch.reasons)})"
        if self._plan.config.collapse == "stop":
            kept = max(checkpoints(self._plan.run.location), default=None)
            raise Collapsed(
                f"{found}, and no training leads out of that. "
                + ("No checkpoint was due before. " if kept is None else f"The checkpoint of step {kept:,} is kept. ")
                + _REMEDIES
            )
        if not self._has_warned:
            self._recorder.warn(f"{found}; the run goes on. {_REMEDIES}")
            self._has_warned = True


_REMEDIES = (
    "In a new run try objective.setting geometric, a lower objective.teacher_temperature, "
    "objective.center_momentum 0.9 or a lower optim.base_lr."
)
"""Of a collapse: matches that cannot collapse, sharpening, centring (Sec. 4.6)."""


class _Recorder:
    """A worker's way to the outside: rank 0 writes the run directory, all ranks meet in Ray Train's report."""

    def __init__(self, plan: Plan, start_step: int) -> None:
        self._plan = plan
        self._skips: list[tuple[int, str]] = []
        self._rank = ray.train.get_context().get_world_rank()
        if self._rank == 0:
            # A fresh start also drops the line of step 0, which it writes again.
            self._reporter = Reporter(plan.monitor, plan.run.ascii_name)
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
        """The units, their skipped images noted on the way."""
        for unit in units:
            for skipped in unit["skips"].tolist():
                self._skips += [(image_id, reason) for image_id, reason in json.loads(skipped)]
            yield unit

    def announce(self, phase: str) -> None:
        """Tell the driver what goes on."""
        if self._rank == 0:
            self._reporter.phase(phase)

    def warn(self, text: str) -> None:
        """Tell the driver what its user should see for good."""
        if self._rank == 0:
            self._reporter.note(text)

    def log(self, metrics: Metrics, state: TrainState | None) -> None:
        """Metrics to the run directory, the driver and Ray Train, and a checkpoint of the state if it is given."""
        skips = self._gathered_skips()
        if self._rank == 0:
            step = int(metrics["step"])
            for image_id, reason in skips:
                self._log.skip(step, image_id, self._plan.source.index.uri(image_id), reason)
            self._log.log(step, metrics)
            totals = {"total_steps": self._plan.total_steps, "epochs": self._plan.config.optim.epochs}
            self._reporter.log(metrics | totals)
            if state is not None:
                self._save(state, metrics)
            self._check_skipped(step)
        if state is not None:
            ray.train.report(metrics)  # a barrier of all workers

    def _save(self, state: TrainState, metrics: Metrics) -> None:
        run, config = self._plan.run, self._plan.config
        self._log.sync()
        facts = {"metrics": metrics}
        content = state.state_dict() | {"config": config.model_dump(mode="json")}
        save_checkpoint(run.location, state.step, content, facts, partial(run.holds_lease, self._plan.token))
        saved = checkpoints(run.location)
        knn = {step: manifest(path)["metrics"].get("knn") for step, path in saved.items()}
        every = config.keep_every_epochs and config.keep_every_epochs * self._plan.steps_per_epoch
        prune_checkpoints(run.location, kept_steps(knn, every))

    def _gathered_skips(self) -> list[tuple[int, str]]:
        mine, self._skips = self._skips, []
        if ray.train.get_context().get_world_size() == 1:
            return mine
        everyones: list[list[tuple[int, str]]] = [[] for _ in range(ray.train.get_context().get_world_size())]
        torch.distributed.all_gather_object(everyones, mine)
        return list(itertools.chain.from_iterable(everyones))

    def _check_skipped(self, step: int) -> None:
        source, data, num_skipped = self._plan.source, self._plan.config.data, self._log.num_skipped
        num_read = min(step * self._plan.config.optim.batch_size + num_skipped, source.num_images)
        if too_many_skipped(num_skipped, num_read, source.num_images, data.max_skipped):
            raise ValueError(
                f"{num_skipped} of the {num_read} images read so far could not be decoded, more than "
                f"data.max_skipped {data.max_skipped:.0%}; {self._plan.run.uri(SKIPPED)} lists them with reasons"
            )
