"""Ray Tune as a sweep uses it."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ray import tune

from glsd.runs.directory import RunDirectory
from glsd.runs.sweep import OUTCOME
from glsd.storage.folder import Folder
from ray_jobs.sweeps.options import Scheduler
from ray_jobs.sweeps.planning import Planned
from ray_jobs.sweeps.schedulers import scheduler_of
from ray_jobs.sweeps.trial import TrialPlan, outcome, run_trial, trial_gpus, write_outcome


def tune_trials(
    waiting: Sequence[Planned],
    folder: RunDirectory,
    scheduler: Scheduler,
    retries: int,
    at_once: int,
) -> None:
    """Run the trials that wait, each as an actor of Ray Tune, until all have ended."""
    # With its handler, `fit` would return after Ctrl-C as if all trials had ended.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    plans = {p.trial.name: p.plan for p in waiting}
    tuner = tune.Tuner(
        # A trial's own process only waits for its training workers, which ask for what they need.
        tune.with_resources(tune.with_parameters(run_trial, plans=plans), {"CPU": 0.01}),
        param_space={"trial": tune.grid_search(list(plans))},
        tune_config=tune.TuneConfig(
            scheduler=scheduler_of(scheduler),
            max_concurrent_trials=at_once,
            reuse_actors=False,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=folder.path,
            storage_filesystem=folder.filesystem,
            verbose=0,
            callbacks=[_Outcomes(plans)],
            failure_config=tune.FailureConfig(max_failures=retries),
        ),
    )
    tuner.fit()


class _Outcomes(tune.Callback):
    """Marks the trials that Tune ends: those that a scheduler stops, and those that fail."""

    def __init__(self, plans: Mapping[str, TrialPlan]) -> None:
        self._plans = plans

    def on_trial_complete(self, **news: Any) -> None:  # type: ignore[override] # Tune names what it tells
        """A trial that ended by itself has said so already."""
        trial = news["trial"]
        plan = self._plans[trial.config["trial"]]
        if outcome(Folder(plan.out)) is None:
            reached = f"at {trial.last_result.get('progress', 0)} % by the scheduler"
            write_outcome(Folder(plan.out), "stopped", reached, trial_gpus(plan))

    def on_trial_error(self, **news: Any) -> None:  # type: ignore[override] # Tune names what it tells
        """Keep the last line of what it said."""
        trial = news["trial"]
        error = trial.get_error()
        plan = self._plans[trial.config["trial"]]
        if Folder(plan.out).read(OUTCOME) is None:  # it was killed, and could not say so itself
            lines = str(error).strip().splitlines()
            write_outcome(Folder(plan.out), "failed", lines[-1] if lines else "it died", trial_gpus(plan))
