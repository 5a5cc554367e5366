"""Trials on Ray Tune: each a pretrain run in its own folder, then its evaluation; `outcome.json` says how it ended.

A trial reports to Tune whenever the teacher was tested by k-NN, and may be stopped there at any time; its run resumes
from its own checkpoint when the sweep is started again.
"""

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from tensorboardX import SummaryWriter

from glsd.config import Config
from glsd.evaluation.verdict import Collapsed
from glsd.runs.checkpoints import checkpoints, newest_checkpoint
from glsd.runs.directory import RunDirectory
from glsd.runs.log import TENSORBOARD, read_metrics
from glsd.runs.records import OUTCOME, Ended, Outcome, Status, read_record, write_record
from glsd.runs.sweep import EVALUATED, evaluation
from glsd.storage.folder import Folder
from glsd.storage.uris import joined
from glsd.training.loop import NonFiniteLoss
from ray_jobs.cluster.deaths import ProcessDied
from ray_jobs.cluster.files import SharedFiles, place_files, share_files
from ray_jobs.evaluation.job import evaluate
from ray_jobs.evaluation.options import EvaluateOptions
from ray_jobs.indexing import adopt
from ray_jobs.pretraining.job import pretrain
from ray_jobs.pretraining.options import PretrainOptions
from ray_jobs.progress import ProgressLine
from ray_jobs.sweeps.planning import Common, PlannedTrial
from ray_jobs.sweeps.schedulers import scheduler_of

_REPORTED = ("step", "epoch", "loss", "knn", "images_per_s", "collapsed")


def tune_trials(
    planned: Sequence[PlannedTrial], common: Common, folder: RunDirectory, num_beside: int, gpus: float
) -> None:
    """Run the trials, each as an actor of Ray Tune whose workers use `gpus`, `num_beside` at a time, until all have
    ended; Tune keeps its own notes in `folder`, that of the sweep.
    """
    # With its handler, `fit` would return after Ctrl-C as if all trials had ended.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    named = {p.trial.name: p for p in planned}
    indexes = {index.path: index for p in planned for index in (p.index, p.tested) if index is not None}
    files = share_files(list(indexes.values()))
    trainable = tune.with_parameters(run_trial, planned=named, common=common, gpus=gpus, files=files)
    tuner = tune.Tuner(
        # A trial's own process only waits for its training workers, which ask for what they need.
        tune.with_resources(trainable, {"CPU": 0.01}),
        param_space={"trial": tune.grid_search(list(named))},
        tune_config=tune.TuneConfig(
            scheduler=scheduler_of(common.options.scheduler), max_concurrent_trials=num_beside, reuse_actors=False
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=folder.path,
            storage_filesystem=folder.filesystem,
            verbose=0,
            callbacks=[_Outcomes({name: p.out for name, p in named.items()}, gpus)],
            failure_config=tune.FailureConfig(max_failures=common.options.retries),
        ),
    )
    tuner.fit()


def run_trial(
    cell: Mapping[str, str], planned: Mapping[str, PlannedTrial], common: Common, gpus: float, files: SharedFiles
) -> None:
    """The function that Tune runs: `cell["trial"]` names the trial, whose workers use `gpus`; `files` are the indexes'.

    It first tells Tune the trial's history, which a scheduler needs; for a trial that has ended already, that is all.
    """
    trial = planned[cell["trial"]]
    folder = Folder(trial.out)
    has_ended = ended_as(folder) is not None
    last_step = math.inf if has_ended else max(checkpoints(folder.location), default=0)
    for metrics in read_metrics(trial.out):
        if metrics["step"] <= last_step:
            _report(metrics, trial.config)
    if has_ended:
        return
    if OUTCOME in folder.sizes():
        folder.remove(OUTCOME)  # it failed, and is tried again
    place_files(files)
    for sources, index in ((trial.data, trial.index), (trial.test, trial.tested)):
        if index is not None:
            adopt(sources, index)
    try:
        status, message = _trained(trial, common, folder)
        _evaluate(trial, common, folder)
    except ProcessDied:
        raise  # without an outcome: a scheduler that stops the trial ends its processes; else Tune starts it again
    except (ValueError, RuntimeError, OSError) as error:
        write_outcome(folder, "failed", str(error), gpus)
        raise
    _write_hyperparameters(trial.config, folder)
    write_outcome(folder, status, message, gpus)


def _trained(trial: PlannedTrial, common: Common, folder: Folder) -> tuple[Status, str]:
    """How the training ended. What cannot be trained further is noted at once, so that a retry only evaluates it."""
    if noted := read_record(folder, Ended):
        return noted.status, noted.message
    options = PretrainOptions(knn_data=tuple(trial.test), figures=False)
    try:
        pretrain(trial.config, trial.data, trial.out, options, common.job, _TuneLine(trial.config))
        return "finished", ""
    except Collapsed as error:
        ended = Ended(status="collapsed", message=str(error))
    except NonFiniteLoss as error:
        ended = Ended(status="not finite", message=str(error))
    write_record(folder, ended)
    return ended.status, ended.message


def _evaluate(trial: PlannedTrial, common: Common, folder: Folder) -> None:
    if newest_checkpoint(folder.location) is not None:
        options = EvaluateOptions(
            test=tuple(trial.test),
            probes=("knn", "correspondence", "collapse"),
            out=joined(trial.out, EVALUATED),
            ks=(trial.config.evaluation.k,),
            pairs=common.options.pairs,
            figures=False,
            keep=False,
        )
        evaluate(trial.out, trial.data, options, common.job)


def ended_as(folder: Folder) -> Status | None:
    """How a trial ended; None while it has not, or ended by an error."""
    found = read_record(folder, Outcome)
    return None if found is None or found.status == "failed" else found.status


def write_outcome(folder: Folder, status: Status, message: str, gpus: float) -> None:
    """Mark a trial as ended."""
    write_record(folder, Outcome(status=status, message=message, gpus=gpus))


class _TuneLine(ProgressLine):
    """A run's progress as Tune's results."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._config = config

    def update(self, metrics: Mapping[str, float]) -> None:
        _report(metrics, self._config)
        super().update(metrics)


def _report(metrics: Mapping[str, float], config: Config) -> None:
    """Tell Tune about a k-NN; `progress` is the per cent of the epochs that are done, for trials of any length.

    The last one is not told: a trial that has been trained is evaluated, however it compares with others.
    """
    progress = round(100 * metrics.get("epoch", 0) / config.optim.epochs)
    if metrics.get("knn") is not None and 0 < progress < 100:
        tune.report({"progress": progress, **{key: metrics[key] for key in _REPORTED if metrics.get(key) is not None}})


def _write_hyperparameters(config: Config, folder: Folder) -> None:
    """What the trial varies and what it reached, for TensorBoard's HPARAMS over `SWEEP/trials`."""
    found = evaluation(folder)
    if found is None or found.knn is None or found.correspondence is None:
        return
    settings = {key: value for key, value in config.flat().items() if isinstance(value, int | float | str)}
    reached = {
        "hparam/knn": found.knn.results[0].top1,
        "hparam/correspondence": found.correspondence.accuracy,
    }
    with tempfile.TemporaryDirectory(prefix="glsd-") as written:
        with SummaryWriter(logdir=written) as writer:
            writer.add_hparams(settings, reached, name="hparams")
        for path in sorted(Path(written).rglob("events.*")):
            folder.write(f"{TENSORBOARD}/{path.relative_to(written).as_posix()}", path.read_bytes())


class _Outcomes(tune.Callback):
    """Marks the trials that Tune ends: those that a scheduler stops, and those that fail."""

    def __init__(self, places: dict[str, str], gpus: float) -> None:
        self._places, self._gpus = places, gpus

    def on_trial_complete(self, **news: Any) -> None:  # type: ignore[override] # Tune names what it tells
        """A trial that ended by itself has said so already."""
        trial = news["trial"]
        folder = Folder(self._places[trial.config["trial"]])
        if ended_as(folder) is None:
            reached = f"at {trial.last_result.get('progress', 0)} % by the scheduler"
            write_outcome(folder, "stopped", reached, self._gpus)

    def on_trial_error(self, **news: Any) -> None:  # type: ignore[override] # Tune names what it tells
        """Keep the last line of the error of a trial that was killed, and could not write its outcome itself."""
        trial = news["trial"]
        folder = Folder(self._places[trial.config["trial"]])
        if folder.read(OUTCOME) is None:
            lines = str(trial.get_error()).strip().splitlines()
            write_outcome(folder, "failed", lines[-1] if lines else "it died", self._gpus)
