"""The trials of a sweep: those of the grid, or those that Optuna proposes round by round (the extra `optuna`).

The search has no state of its own. It is made from the trials that have ended, so a sweep that was killed resumes it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from glsd.runs.log import read_metrics
from glsd.runs.records import SweepFile, read_record
from glsd.runs.sweep import TRIALS, evaluation
from glsd.storage.folder import Folder
from glsd.storage.uris import joined
from ray_jobs.sweeps.grids import Distribution, Overrides, Space, Trial, trials
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

    There are `num_beside` of them at most, which run at a time and cannot learn from each other.
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


def suggest(space: Space, ended: Sequence[tuple[Mapping[str, Any], float]], count: int, seed: int) -> list[Overrides]:
    """Settings of the next `count` trials, from those of the trials that have ended and what they reached.

    Raises:
        ValueError: Optuna is not installed, or an axis sets several keys together.
    """
    try:
        import optuna
    except ImportError as error:
        raise ValueError("--search optuna needs the package optuna: pip install 'glsd[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {key: _of_optuna(distribution) for key, distribution in space.distributions.items()}
    for key, values in space.axes.items():
        if any(isinstance(value, Mapping) for value in values):
            raise ValueError(f"--search optuna cannot set several keys together, as axis {key} does")
        distributions[key] = optuna.distributions.CategoricalDistribution(values)
    # The seed depends on the number of trials, as a search that resumes would otherwise draw what it drew at first.
    sampler = optuna.samplers.TPESampler(seed=seed + len(ended))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for settings, value in ended:
        params = {key: settings[key] for key in distributions}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
    return [dict(study.ask(distributions).params) for _ in range(count)]


def _of_optuna(distribution: Distribution) -> Any:
    import optuna

    if distribution.kind == "choice":
        return optuna.distributions.CategoricalDistribution(distribution.choices)
    if distribution.kind == "randint":
        return optuna.distributions.IntDistribution(int(distribution.low), int(distribution.high) - 1)
    is_log = distribution.kind == "loguniform"
    return optuna.distributions.FloatDistribution(distribution.low, distribution.high, log=is_log)
