"""One trial of a sweep: a pretrain run in a folder of its own, then its evaluation; what came of it is `outcome.json`.

A trial runs within Ray Tune, reports to it whenever the teacher was tested by k-NN, and may be stopped there at any
moment; its run continues from its own checkpoint when the sweep is started again.
"""

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from tensorboardX import SummaryWriter

from glsd.config import Config
from glsd.evaluation.verdict import Collapsed
from glsd.runs.checkpoints import checkpoints, newest_checkpoint
from glsd.runs.log import TENSORBOARD, read_metrics
from glsd.runs.sweep import EVALUATED, OUTCOME, Status, evaluation
from glsd.storage.folder import Folder
from glsd.storage.uris import joined
from glsd.training.loop import NonFiniteLoss
from ray_jobs.cluster.deaths import ProcessDied
from ray_jobs.evaluation.job import evaluate
from ray_jobs.evaluation.options import EvaluateOptions, Probe
from ray_jobs.pretraining.job import pretrain
from ray_jobs.pretraining.options import PretrainOptions
from ray_jobs.progress import ProgressLine
from ray_jobs.settings import JobSettings

_ENDED = "ended.json"
_MEASURED: tuple[Probe, ...] = ("knn", "correspondence", "collapse")


@dataclass(frozen=True)
class TrialPlan:
    """What a trial needs; it travels to its actor."""

    name: str
    config: Config
    data: tuple[str, ...]
    test: tuple[str, ...]
    out: str
    """Run directory."""
    job: JobSettings
    pairs: int
    """Images of the correspondence."""


def run_trial(cell: Mapping[str, str], plans: Mapping[str, TrialPlan]) -> None:
    """The function that Tune runs: `cell["trial"]` names the plan.

    It first tells Tune the trial's history, so that a scheduler knows what it would have known; for a trial that has
    ended already, that is all.
    """
    plan = plans[cell["trial"]]
    folder = Folder(plan.out)
    has_ended = outcome(folder) is not None
    last_step = math.inf if has_ended else max(checkpoints(folder.location), default=0)
    for line in read_metrics(plan.out):
        if line["step"] <= last_step:
            _report(line, plan.config)
    if has_ended:
        return
    if OUTCOME in folder.sizes():
        folder.remove(OUTCOME)  # it failed, and is tried again
    try:
        status, message = _trained(plan, folder)
        _evaluate(plan, folder)
    except ProcessDied:
        raise  # without an outcome: a scheduler that stops the trial ends its processes; else Tune starts it again
    except (ValueError, RuntimeError, OSError) as error:
        write_outcome(folder, "failed", str(error), trial_gpus(plan))
        raise
    _write_hyperparameters(plan, folder)
    write_outcome(folder, status, message, trial_gpus(plan))


def _trained(plan: TrialPlan, folder: Folder) -> tuple[Status, str]:
    """How the training ended. What cannot be trained further is noted at once, so that a retry only evaluates it."""
    status: Status
    if noted := folder.read(_ENDED):
        status, message = json.loads(noted)
        return status, message
    try:
        options = PretrainOptions(knn_data=plan.test, figures=False)
        pretrain(plan.config, plan.data, plan.out, options, plan.job, _TuneLine(plan))
    except Collapsed as error:
        status, message = "collapsed", str(error)
    except NonFiniteLoss as error:
        status, message = "not finite", str(error)
    else:
        return "finished", ""
    folder.write(_ENDED, json.dumps([status, message]).encode())
    return status, message


def _evaluate(plan: TrialPlan, folder: Folder) -> None:
    if newest_checkpoint(folder.location) is not None:
        options = EvaluateOptions(
            test=plan.test,
            probes=_MEASURED,
            out=joined(plan.out, EVALUATED),
            ks=(plan.config.evaluation.k,),
            pairs=plan.pairs,
            figures=False,
            keep=False,
        )
        evaluate(plan.out, plan.data, options, plan.job)


def outcome(folder: Folder) -> dict[str, Any] | None:
    """How a trial ended: `status`, `message`, `gpus`; None while it has not, or ended by an error."""
    found = json.loads(folder.read(OUTCOME) or b"null")
    return None if found is None or found["status"] == "failed" else dict(found)


def write_outcome(folder: Folder, status: Status, message: str, gpus: float) -> None:
    """Mark a trial as ended."""
    folder.write(OUTCOME, (json.dumps({"status": status, "message": message, "gpus": gpus}) + "\n").encode())


class _TuneLine(ProgressLine):
    """A run's progress as Tune's results."""

    def __init__(self, plan: TrialPlan) -> None:
        super().__init__()
        self._plan = plan

    def update(self, metrics: Mapping[str, float]) -> None:
        _report(metrics, self._plan.config)
        super().update(metrics)


def _write_hyperparameters(plan: TrialPlan, folder: Folder) -> None:
    """What the trial varies and what it reached, for TensorBoard's HPARAMS over `SWEEP/trials`."""
    found = evaluation(folder)
    if found is None:
        return
    settings = {key: value for key, value in plan.config.flat().items() if isinstance(value, int | float | str)}
    reached = {
        "hparam/knn": found["knn"]["results"][0]["top1"],
        "hparam/correspondence": found["correspondence"]["accuracy"],
    }
    with tempfile.TemporaryDirectory(prefix="glsd-") as written:
        with SummaryWriter(logdir=written) as writer:
            writer.add_hparams(settings, reached, name="hparams")
        for path in sorted(Path(written).rglob("events.*")):
            folder.write(f"{TENSORBOARD}/{path.relative_to(written).as_posix()}", path.read_bytes())


def trial_gpus(plan: TrialPlan) -> float:
    """GPUs of the trial's workers; 0 where it trains on CPUs."""
    settings = plan.job
    has_any = ray.cluster_resources().get("GPU", 0) >= 1 if settings.gpu is None else settings.gpu
    return settings.workers * settings.gpus_per_worker if has_any else 0.0


def _report(metrics: Mapping[str, Any], config: Config) -> None:
    """Tell Tune about a k-NN; `progress` is the per cent of the epochs that are done, for trials of any length.

    Not about the last one: a trial that has been trained is evaluated, however it stands beside others.
    """
    progress = round(100 * metrics.get("epoch", 0) / config.optim.epochs)
    if metrics.get("knn") is not None and 0 < progress < 100:
        tune.report({"progress": progress, **{key: metrics[key] for key in _REPORTED if metrics.get(key) is not None}})


_REPORTED = ("step", "epoch", "loss", "knn", "images_per_s", "collapsed")
