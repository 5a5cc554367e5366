"""The trials of a sweep: those of the grid, or those that a search proposes round by round."""

from collections.abc import Sequence

from glsd.runs.log import read_metrics
from glsd.runs.records import SweepFile, read_record
from glsd.runs.sweep import TRIALS, evaluation
from glsd.storage.folder import Folder
from glsd.storage.uris import joined
from ray_jobs.sweeps.grids import Space, Trial, trials
from ray_jobs.sweeps.optuna_search import suggest
from ray_jobs.sweeps.planning import Common
from ray_jobs.sweeps.trial import ended_as

_MOST_DRAWS = 20


def known_trials(space: Space, common: Common) -> list[Trial]:
    """All trials of the grid, or, where a search proposes them, those that this sweep was asked for before."""
    if common.options.search == "random":
        return trials(space, list(common.data), common.options.samples, common.base.seed)
    sweep = read_record(Folder(common.out), SweepFile) or SweepFile()
    return [
        Trial(name, trial.data, trial.overrides)
        for name, trial in sweep.trials.items()
        if trial.data in common.data and space.holds(trial.overrides)
    ]


def proposed_trials(space: Space, common: Common, known: Sequence[Trial], num_beside: int) -> list[Trial]:
    """The next trials that a search proposes, from what those of the known ones that have ended reached.

    Args:
        space: what may be tried.
        common: how to search, on one data set.
        known: the trials so far.
        num_beside: trials that run at a time, and cannot learn from each other.
    """
    samples = common.options.samples
    count = min(num_beside, samples - len(known))
    if common.options.search == "random" or count <= 0:
        return []
    values = [(trial.overrides, reached(joined(common.out, f"{TRIALS}/{trial.name}"))) for trial in known]
    ended = [(overrides, value) for overrides, value in values if value is not None]
    tried, found, (data,) = [trial.overrides for trial in known], list[Trial](), common.data
    for attempt in range(_MOST_DRAWS):  # of lists, the same values may be drawn again
        for draw in suggest(space, ended, count, common.base.seed + attempt * samples):
            trial = space.trial(data, draw)
            if trial.overrides not in tried:
                tried.append(trial.overrides)
                found.append(trial)
        if found:
            break
    return found


def reached(place: str) -> float | None:
    """What a search learns from the trial in that folder; None while it has not ended.

    It is the k-NN accuracy of its evaluation, the last online one where a scheduler stopped it, 0 where the loss was
    not finite.
    """
    status, found = ended_as(Folder(place)), evaluation(Folder(place))
    if status is None:
        return None
    if status == "not finite":
        return 0.0
    if found is not None and found.knn is not None:
        return found.knn.results[0].top1
    online = [logged["knn"] for logged in read_metrics(place) if logged["step"] and logged.get("knn") is not None]
    return float(online[-1]) if online else 0.0
