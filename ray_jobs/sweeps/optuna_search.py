"""Optuna's search: draws that learn from the trials before (the extra `optuna`).

The search has no state of its own. It is made anew from the trials that have ended, so it goes on after a kill with
what is known.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ray.tune.search.sample import Categorical, Domain, Float, Integer

from ray_jobs.sweeps.grids import Space


def suggest(
    space: Space, ended: Sequence[tuple[Mapping[str, Any], float]], count: int, seed: int
) -> list[dict[str, Any]]:
    """Settings of the next `count` trials.

    Args:
        space: lists are choices here.
        ended: settings of trials, and what they reached, the more the better.
        count: trials that run side by side and cannot learn from each other.
        seed: of the sampler.

    Raises:
        ValueError: Optuna is not installed, or an axis sets several keys together.
    """
    try:
        import optuna
    except ImportError as error:
        raise ValueError("--search optuna needs the package optuna: pip install 'glsd[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {key: _distribution(key, domain) for key, domain in space.distributions.items()}
    for key, values in space.axes.items():
        if any(isinstance(value, Mapping) for value in values):
            raise ValueError(f"--search optuna cannot set several keys together, as axis {key} does")
        distributions[key] = optuna.distributions.CategoricalDistribution(values)
    # The sampler's seed moves on with the trials, or a search that goes on would draw what it drew at first.
    sampler = optuna.samplers.TPESampler(seed=seed + len(ended))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for settings, value in ended:
        params = {key: settings[key] for key in distributions}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
    return [dict(study.ask(distributions).params) for _ in range(count)]


def _distribution(key: str, domain: Domain) -> Any:
    import optuna

    if isinstance(domain, Categorical):
        return optuna.distributions.CategoricalDistribution(domain.categories)
    if isinstance(domain, Integer):
        return optuna.distributions.IntDistribution(domain.lower, domain.upper - 1)
    if isinstance(domain, Float):
        is_log = isinstance(domain.get_sampler(), Float._LogUniform)
        return optuna.distributions.FloatDistribution(domain.lower, domain.upper, log=is_log)
    raise AssertionError(f"{key}: {domain}")
