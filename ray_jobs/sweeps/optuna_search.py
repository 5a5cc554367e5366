"""Optuna's search: draws that learn from the trials before (the extra `optuna`).

The search has no state of its own. It is made from the trials that have ended, so a sweep that was killed resumes it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ray_jobs.sweeps.grids import Distribution, Overrides, Space


def suggest(space: Space, ended: Sequence[tuple[Mapping[str, Any], float]], count: int, seed: int) -> list[Overrides]:
    """Settings of the next `count` trials.

    Args:
        space: lists are choices here.
        ended: settings of trials, and what they reached; more is better.
        count: trials that run at a time and cannot learn from each other.
        seed: of the sampler.

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
