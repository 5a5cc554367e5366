"""What a sweep varies: named grids of the paper's study, and one's own.

A grid is a mapping from an axis to its values. An axis is a setting's dotted key with a list of values, or any name
with a list of mappings, each of which sets several keys together. `together` lists axes whose values go together, the
first with the first and so on. A trial is one value of every axis; its name is made of them, so that the same grid
always names the same trials.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import yaml
from ray import tune
from ray.tune.search.sample import Categorical, Domain, Integer

from glsd.config import Config, Setting

SETTINGS = list(get_args(Setting))
_SWIN = {
    "swin_tiny_patch4_window7_224": 0.1,
    "swin_tiny_patch4_window14_224": 0.1,
    "swin_small_patch4_window7_224": 0.2,
}

Grid = dict[str, list[Any]]

GRIDS: dict[str, Grid] = {
    # Fig. 4
    "matching_by_regime": {"objective.setting": SETTINGS, "data.images_per_class": [10, 20, 50, 100, 200, None]},
    # Table 3, with one data set a name in --data
    "matching_by_dataset": {
        "backbone": [{"model.backbone": name, "model.drop_path": rate} for name, rate in _SWIN.items()],
        "objective.setting": SETTINGS,
    },
    "temperatures": {
        "objective.setting": ["similarity", "geometric"],
        "objective.teacher_temperature": [0.04, 0.055, 0.07],
        "objective.student_temperature": [0.1, 0.2],
    },
    # Eq. 6: the hinge off, on, and scaled
    "threshold": {"objective.setting": ["geometric"], "objective.threshold_scale": [None, 0.5, 1.0, 2.0]},
    "learning_rate": {"optim.base_lr": [1e-4, 2.5e-4, 5e-4, 1e-3, 2e-3]},
}

TOGETHER = "together"
"""Key of a grid for lists of axes whose values go together."""

UNNAMED = "data"
"""Name of a data set that has none; it is in no trial's name."""

_DISTRIBUTIONS: dict[str, Callable[..., Domain]] = {
    "uniform": tune.uniform,
    "loguniform": tune.loguniform,
    "randint": tune.randint,
    "choice": tune.choice,
}


@dataclass(frozen=True)
class Trial:
    """One cell of a grid."""

    name: str
    """Made of the axes' values: a folder's name."""
    data: str
    """Name of its data set."""
    overrides: dict[str, Any]
    """Dotted keys of the configuration."""

    def config(self, base: Config) -> Config:
        """The trial's configuration.

        Raises:
            ValueError: a key does not exist or a value is impossible.
        """
        return base.with_overrides(self.overrides)


@dataclass(frozen=True)
class Space:
    """Everything a sweep may try: lists are tried in all combinations, distributions are drawn from."""

    axes: dict[str, list[Any]]
    distributions: dict[str, Domain]
    fixed: dict[str, Any]
    """Settings that all trials share; they are in no name."""

    @property
    def together(self) -> list[list[str]]:
        """The keys that an axis sets together, for each such axis."""
        return [keys for axis, values in self.axes.items() if len(keys := _keys(axis, values)) > 1]

    def holds(self, overrides: Mapping[str, Any]) -> bool:
        """Whether a search over this space may have drawn these settings."""
        if overrides.keys() != self.axes.keys() | self.distributions.keys() | self.fixed.keys():
            return False
        return (
            all(overrides[key] == value for key, value in self.fixed.items())
            and all(overrides[key] in values for key, values in self.axes.items())
            and all(_may_draw(domain, overrides[key]) for key, domain in self.distributions.items())
        )


def load_space(grid: str, changes: Sequence[str] = (), seeds: Sequence[int] = (), base_seed: int = 0) -> Space:
    """A named grid, or a YAML file of dotted keys with lists or distributions.

    Args:
        grid: a name of `GRIDS` or a path, such as of a file with `optim.base_lr: {loguniform: [1e-5, 1e-3]}`. Axes in
            a list of `together`, such as `together: [[augment.local_sizes, augment.num_local_crops]]`, are one axis:
            their first values go together, their second ones, and so on.
        changes: axes such as `optim.base_lr=1e-4,5e-4`, in place of the grid's or beside them; a single value beside
            them is a setting that all trials share. `together=[augment.local_sizes,augment.num_local_crops]` as well.
        seeds: the axis `seed`; without it and without such an axis in the grid it is `base_seed` alone.
        base_seed: the seed of what all trials share.

    Raises:
        ValueError: there is no such grid or file, an axis is neither a list nor a distribution, two set one key, or
            axes that go together have unequal numbers of values.
    """
    if grid in GRIDS:
        tree: Mapping[str, Any] = GRIDS[grid]
    elif Path(grid).suffix in {".yaml", ".yml"} and Path(grid).is_file():
        try:
            tree = yaml.safe_load(Path(grid).read_text("utf-8")) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{grid} is not valid YAML: {error}") from error
        if not isinstance(tree, dict):
            raise ValueError(f"{grid} must map dotted keys to lists or distributions")
    else:
        raise ValueError(f"there is no grid {grid!r}; choose from {', '.join(GRIDS)}, or give the path of a YAML file")
    axes: dict[str, list[Any]] = {}
    distributions: dict[str, Domain] = {}
    changed = dict(map(_change, changes))
    if len(changed) < len(changes):
        raise ValueError(f"--grid names an axis twice: {' '.join(changes)}; list all its values once")
    bundles = _bundles({**tree, **changed}.get(TOGETHER, []))
    kept = {*tree, *(key for keys in bundles for key in keys), TOGETHER}
    fixed = {key: _value(key, values[0]) for key, values in changed.items() if len(values) == 1 and key not in kept}
    for key, values in {**tree, **changed}.items():
        if key in fixed or key == TOGETHER:
            continue
        if isinstance(values, list) and values and not any(map(_is_distribution, values)):
            axes[key] = [_value(key, value) for value in values]
        elif _is_distribution(values):
            ((kind, arguments),) = values.items()
            distributions[key] = _distribution(key, kind, arguments)
        else:
            raise ValueError(
                f"axis {key} must be a list of values or one of {', '.join(_DISTRIBUTIONS)} with its arguments, "
                f"such as {{loguniform: [1e-5, 1e-3]}}, not {values!r}"
            )
    _axis_of_key(Space(axes, distributions, fixed))
    for keys in bundles:
        axes = _zipped(axes, keys)
    space = Space(axes, distributions, fixed)
    if "seed" not in _axis_of_key(space):
        axes["seed"] = list(seeds) or [base_seed]
    elif seeds:
        raise ValueError("the grid has an axis seed already; leave out --seeds, or the axis")
    return space


def trials(space: Space, data: Sequence[str], samples: int = 1, seed: int = 0) -> list[Trial]:
    """All combinations of the lists, on every data set, each with `samples` draws where there are distributions.

    Draws are keyed by `seed`, so the same sweep tries the same values whenever it is started. A draw that was drawn
    before makes no trial.
    """
    axes = [[_settings(key, value) for value in values] for key, values in space.axes.items()]
    draws: list[dict[str, Any]] = [{}]
    if space.distributions:
        random = np.random.RandomState(seed)
        drawn = [
            {key: _plain(domain.sample(random_state=random)) for key, domain in space.distributions.items()}
            for _ in range(samples)
        ]
        draws = [draw for number, draw in enumerate(drawn) if draw not in drawn[:number]]
    found: dict[str, Trial] = {}
    for name, *cell in itertools.product(data, *axes):
        settings = {key: value for part in cell for key, value in part.items()}
        for draw in draws:
            trial = drawn_trial(space, name, settings | draw, found.keys())
            if trial.name in found:
                raise ValueError(f"two trials would be called {trial.name}; name each value of an axis once")
            found[trial.name] = trial
    return list(found.values())


def drawn_trial(space: Space, data: str, varied: Mapping[str, Any], known: Set[str]) -> Trial:
    """The trial with these settings; numbers in its name have as many digits as tell it from the known names."""
    names = [
        trial_name([*_data_part(data), *(_part(key, value, digits) for key, value in varied.items())])
        for digits in _DIGITS
    ]
    name = next((name for name in names if name not in known), names[0])
    return Trial(name, data, space.fixed | dict(varied))


def named_sources(given: Sequence[str]) -> dict[str, list[str]]:
    """Sources by the name of their data set, which stands before `=`; one without a name is `data`.

    >>> named_sources(["food=/data/food", "nct=s3://bucket/nct"])
    {'food': ['/data/food'], 'nct': ['s3://bucket/nct']}
    """
    found: dict[str, list[str]] = {}
    for text in given:
        match = _NAMED_SOURCE.fullmatch(text)
        found.setdefault(match[1] if match else UNNAMED, []).append(match[2] if match else text)
    return found


def trial_name(parts: Sequence[str]) -> str:
    """A folder's name from what makes a trial; a long one is cut and ends in a digest.

    >>> trial_name(["setting_geometric", "images_per_class_10", "seed_0"])
    'setting_geometric-images_per_class_10-seed_0'
    """
    name = re.sub(r"[^\w.+-]+", "_", "-".join(parts)) or "base"
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


_LONGEST_NAME = 120
_DIGITS = range(4, 18)  # seventeen tell all numbers apart
_NAMED_SOURCE = re.compile(r"([\w-]+)=(.+)")
_CALL = re.compile(r"\w\(")
_DEFAULTS = Config().flat()


def _change(text: str) -> tuple[str, Any]:
    """`optim.base_lr=1e-4,5e-4` as an axis."""
    key, equals, values = text.partition("=")
    if not equals or not key or not values:
        raise ValueError(f"--grid {text!r} must be KEY=VALUE,VALUE, such as optim.base_lr=1e-4,5e-4")
    try:
        listed = yaml.safe_load(f"[{values}]")
    except yaml.YAMLError as error:
        raise ValueError(f"--grid {text!r} has values that are not valid YAML: {error}") from error
    if _CALL.search(values) or any(map(_is_distribution, listed)):
        raise ValueError(
            f"--grid {text!r} names a distribution, and --grid takes values alone; write it into a YAML file and give "
            f"that as STUDY, such as {key}: {{loguniform: [1e-5, 1e-3]}} ({', '.join(_DISTRIBUTIONS)})"
        )
    return key, listed


def _value(key: str, value: Any) -> Any:
    """A value of that key as YAML should have read it, which takes 1e-4 and None for words."""
    if isinstance(value, Mapping):
        return {key: _value(key, part) for key, part in value.items()}
    if isinstance(value, list):
        return [_value(key, part) for part in value]
    if not isinstance(value, str) or isinstance(_DEFAULTS.get(key), str):
        return value
    if value == "None":
        return None
    try:
        return float(value)
    except ValueError:
        return value


def _is_distribution(values: Any) -> bool:
    return isinstance(values, Mapping) and len(values) == 1 and next(iter(values)) in _DISTRIBUTIONS


def _bundles(lists: Any) -> list[list[str]]:
    """The lists of `together`."""
    if not isinstance(lists, list) or not all(isinstance(keys, list) and len(keys) > 1 for keys in lists):
        raise ValueError(
            f"{TOGETHER} must hold lists of axes, such as [[augment.local_sizes, augment.num_local_crops]] (--grid "
            f"'{TOGETHER}=[augment.local_sizes,augment.num_local_crops]'), not {lists!r}"
        )
    named = [str(key) for keys in lists for key in keys]
    if repeated := [key for number, key in enumerate(named) if key in named[:number]]:
        raise ValueError(f"{TOGETHER} names {repeated[0]} twice; an axis goes into one list, once")
    return [[str(key) for key in keys] for keys in lists]


def _zipped(axes: Mapping[str, list[Any]], keys: Sequence[str]) -> dict[str, list[Any]]:
    """The axes, of which those of the keys have become one, at the place of the first."""
    if lacking := [key for key in keys if key not in axes]:
        raise ValueError(
            f"{TOGETHER} names {lacking[0]}, which is no axis with a list of values; {', '.join(axes)} are"
        )
    if len({len(axes[key]) for key in keys}) > 1:
        counts = ", ".join(f"{key} has {len(axes[key])}" for key in keys)
        raise ValueError(f"axes that go together need equal numbers of values, and {counts}")
    values = [
        {part: value for axis, given in zip(keys, row, strict=True) for part, value in _settings(axis, given).items()}
        for row in zip(*(axes[key] for key in keys), strict=True)
    ]
    first, *others = keys
    return {
        " and ".join(keys) if axis == first else axis: values if axis == first else axes[axis]
        for axis in axes
        if axis not in others
    }


def _distribution(key: str, kind: str, arguments: Any) -> Domain:
    try:
        arguments = _value(key, arguments)
        return _DISTRIBUTIONS[kind](*([arguments] if kind == "choice" else arguments))
    except (TypeError, ValueError) as error:
        raise ValueError(f"axis {key}: {kind} cannot take {arguments!r}: {error}") from error


def _settings(axis: str, value: Any) -> dict[str, Any]:
    """Dotted keys that one value of an axis sets."""
    return dict(value) if isinstance(value, Mapping) else {axis: value}


def _keys(axis: str, values: Sequence[Any]) -> list[str]:
    """Dotted keys that an axis sets, each once."""
    return list(dict.fromkeys(key for value in values for key in _settings(axis, value)))


def _axis_of_key(space: Space) -> dict[str, str]:
    """Which axis sets a dotted key.

    Raises:
        ValueError: two do, of which one sets several keys together, or a key is no text.
    """
    of_lists = {axis: _keys(axis, values) for axis, values in space.axes.items()}
    found: dict[str, str] = {}
    for axis, keys in (of_lists | {key: [key] for key in (*space.distributions, *space.fixed)}).items():
        for key in keys:
            if not isinstance(key, str):
                raise ValueError(f"{key!r} is no setting; an axis is a dotted key such as optim.base_lr")
            if key in found:
                together = found[key] if axis == key else axis
                raise ValueError(
                    f"{key} is set by the axis {found[key]} and by {axis}; leave one out, or give all that {together} "
                    f"is to set: --grid '{together}={{{key}: ..., ...}}'"
                )
            found[key] = axis
    return found


def _part(key: str, value: Any, digits: int) -> str:
    leaf = key.rpartition(".")[2]
    if value is None:
        return f"{leaf}_none"
    return f"{leaf}_{value:.{digits}g}" if isinstance(value, float) else f"{leaf}_{json.dumps(value).strip(chr(34))}"


def _data_part(data: str) -> list[str]:
    return [] if data == UNNAMED else [data]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _may_draw(domain: Domain, value: Any) -> bool:
    if isinstance(domain, Categorical):
        return value in domain.categories
    if isinstance(domain, Integer):
        return value in range(domain.lower, domain.upper)
    return isinstance(value, int | float) and domain.is_valid(value)
