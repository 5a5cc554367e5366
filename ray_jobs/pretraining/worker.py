"""The training worker: Ray Data's units in, glsd's loop, and the run directory out; its alarm for a collapse."""

import itertools
import math
from collections.abc import Callable, Iterator

import ray.train
import ray.train.torch
import torch

from glsd.config import Config
from glsd.evaluation.collapse import collapse_metrics
from glsd.evaluation.online_knn import OnlineKnn
from glsd.evaluation.verdict import Collapsed, CollapseWatch
from glsd.runs.checkpoints import checkpoints, load_checkpoint
from glsd.runs.log import read_metrics
from glsd.runs.records import Failure, read_record, write_record
from glsd.training.determinism import same_sums
from glsd.training.loop import Metrics, NonFiniteLoss, Reading, steps
from glsd.training.state import TrainState, initial_state
from glsd.training.step import mean_metrics
from ray_jobs.cluster.files import place_files
from ray_jobs.pretraining.initial_weights import read_initial_weights
from ray_jobs.pretraining.recorder import Plan, Recorder
from ray_jobs.settings import num_cores
from ray_jobs.workers.stream import Unit

_FAILURES = {kind.__name__: kind for kind in (ValueError, NonFiniteLoss, Collapsed, torch.OutOfMemoryError)}


def train_worker(plan: Plan, units: Iterator[Unit]) -> None:
    """One worker of a run, from the newest checkpoint to the end.

    Raises:
        ValueError: it does not reach the driver's run directory, or images or settings cannot be used.
        OSError: images could not be read.
    """
    plan.run.check_reached(plan.token)
    failure = read_record(plan.run, Failure)
    if failure is not None and failure.token == plan.token:
        # A worker that is started again would only meet the same data or the same loss again.
        raise _FAILURES[failure.kind](failure.message)
    place_files(plan.files)
    if plan.torch_threads is not None:
        torch.set_num_threads(plan.torch_threads)
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        same_sums()
    try:
        _train(plan, units, device)
    except tuple(_FAILURES.values()) as error:
        kind = next(name for name, kind in _FAILURES.items() if isinstance(error, kind))
        write_record(plan.run, Failure(token=plan.token, kind=kind, message=str(error)))
        raise


def _train(plan: Plan, units: Iterator[Unit], device: torch.device) -> None:
    config = plan.config
    first = next(units, None)
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
                f"{checkpoint} has other settings ({', '.join(other)}), so it is not of this run; delete it"
            )
        state.load_state_dict(content)

    with Recorder(plan, state.step) as recorder:
        if state.step:
            recorder.announce(f"resuming at step {state.step:,} of {plan.total_steps:,}")
        knn = _knn(plan, recorder, device)
        if state.step == 0:
            # The teacher before training is the backbone as it was initialised: the baseline of all later figures.
            recorder.log({"step": 0} | knn(state), state, save=False)
        alarm = None if config.collapse == "ignore" else CollapseAlarm(plan, recorder, start_step)
        watched = recorder.watched(itertools.chain([first], units))
        for reading in steps(state, watched, config, plan.steps_per_epoch, device):
            metrics = reading.metrics
            if alarm is not None:
                metrics |= alarm.measures(state, reading)
            if reading.probe_is_due:
                metrics |= knn(state)
            if alarm is not None:
                metrics |= alarm.verdict(metrics)
            is_stopping = recorder.log(metrics, state, save=reading.checkpoint_is_due)
            if alarm is not None:
                alarm.sound(metrics)
            if is_stopping:
                return


def _knn(plan: Plan, recorder: Recorder, device: torch.device) -> Callable[[TrainState], Metrics]:
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


class CollapseAlarm:
    """Looks for a collapse (Sec. 4.6) whenever metrics are logged, and warns or stops as `collapse` says.

    The readings are means over the workers, so that all of them judge alike. Those that were logged up to `start_step`
    are judged again, so a run that resumes finds a collapse where it would have found it.
    """

    def __init__(self, plan: Plan, recorder: Recorder, start_step: int) -> None:
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
        found = f"the teacher collapsed at step {metrics['step']:,} ({'; '.join(self._watch.reasons)})"
        if self._plan.config.collapse == "stop":
            kept = max(checkpoints(self._plan.run.location), default=None)
            raise Collapsed(
                f"{found}; training does not recover from this. "
                + ("No checkpoint was due before. " if kept is None else f"The checkpoint of step {kept:,} is kept. ")
                + _REMEDIES
            )
        if not self._has_warned:
            self._recorder.warn(f"{found}; the run continues. {_REMEDIES}")
            self._has_warned = True


_REMEDIES = (
    "In a new run try objective.setting geometric, a lower objective.teacher_temperature, "
    "objective.center_momentum 0.9 or a lower optim.base_lr."
)
"""Of a collapse: matches that cannot collapse, sharpening, centring (Sec. 4.6)."""
