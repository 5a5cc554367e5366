"""Ray Tune as a sweep uses it."""

import os
from collections.abc import Sequence
from typing import Any

from ray import tune

from glsd.runs.directory import RunDirectory
from glsd.runs.records import OUTCOME
from glsd.storage.folder import Folder
from ray_jobs.sweeps.planning import Common, PlannedTrial
from ray_jobs.sweeps.schedulers import scheduler_of
from ray_jobs.sweeps.trial import ended_as, run_trial, write_outcome


def tune_trials(
    planned: Sequence[PlannedTrial], common: Common, folder: RunDirectory, num_beside: int, gpus: float
) -> None:
    """Run the trials, each as an actor of Ray Tune, until all have ended.

    Args:
        planned: the trials.
        common: what they share.
        folder: of the sweep; Tune keeps its own notes there.
        num_beside: trials at a time.
        gpus: GPUs of a trial's workers.
    """
    # With its handler, `fit` would return after Ctrl-C as if all trials had ended.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    named = {p.trial.name: p for p in planned}
    trainable = tune.with_parameters(run_trial, planned=named, common=common, gpus=gpus)
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
