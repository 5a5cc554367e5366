"""Early stopping: what Tune's schedulers are told, and what they do with trials that say little."""

from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from glsd.config import Config
from ray_jobs.sweeps.schedulers import check_scheduler, scheduler_of

NO_CONTROLLER: Any = None
"""The rules ask Tune's controller only whether they should pause a trial, which they never do."""


def five_trials() -> list[Trial]:
    return [Trial("train", stub=True) for _ in range(5)]


def reported(scheduler: TrialScheduler, trial: Trial, progress: int, knn: float) -> str:
    return scheduler.on_trial_result(NO_CONTROLLER, trial, {"progress": progress, "knn": knn})


def test_the_median_rule_stops_the_worst_of_five_and_pauses_none() -> None:
    rule = scheduler_of("median")
    *better, worst = five_trials()
    decisions = [reported(rule, trial, 50, knn) for trial, knn in zip(better, (0.4, 0.5, 0.6, 0.7), strict=True)]
    assert decisions == [TrialScheduler.CONTINUE] * 4
    assert reported(rule, worst, 20, 0.1) == TrialScheduler.CONTINUE  # its grace
    assert reported(rule, worst, 50, 0.1) == TrialScheduler.STOP


def test_a_trial_that_ends_without_a_knn_does_not_end_the_others() -> None:
    rule = scheduler_of("median")
    resumed_after_its_last_knn, *better, worse = five_trials()
    rule.on_trial_complete(NO_CONTROLLER, resumed_after_its_last_knn, {})
    for trial, knn in zip(better, (0.4, 0.5, 0.6), strict=True):
        assert reported(rule, trial, 50, knn) == TrialScheduler.CONTINUE
    rule.on_trial_complete(NO_CONTROLLER, better[-1], {"progress": 50, "knn": 0.6})
    assert reported(rule, worse, 50, 0.3) == TrialScheduler.STOP


@pytest.mark.parametrize(("every", "epochs", "judged"), [(1, 4, True), (10, 10, False), (2, 3, True), (0, 8, False)])
def test_a_trial_without_a_knn_between_a_quarter_of_its_epochs_and_its_end_is_refused(
    every: int, epochs: int, judged: bool
) -> None:
    config = Config().with_overrides(
        {"evaluation.knn_every_epochs": every, "optim.epochs": epochs, "optim.warmup_epochs": 0}
    )
    check_scheduler("fifo", config)
    if judged:
        check_scheduler("asha", config)
    else:
        with pytest.raises(ValueError, match=rf"knn_every_epochs {every} there is none in {epochs} epochs; set it to"):
            check_scheduler("asha", config)
