"""What a sweep varies: named grids of the paper's study, and one's own.

A grid is a mapping from an axis to its values. An axis is a setting's dotted key with a list of values, or any name
with a list of mappings, each of which sets several keys together. `together` lists axes whose values go together: the
first values are one cell, the second values the next. A trial is one value of every axis, and is named after them, so
the same grid always names the same trials.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from glsd.config import Config, Setting
from glsd.record import parsed_yaml

SETTINGS = list(get_args(Setting))
_SWIN = {
    "swin_tiny_patch4_window7_224": 0.1,
    "swin_tiny_patch4_window14_224": 0.1,
    "swin_small_patch4_window7_224": 0.2,
}

Grid = dict[str, list[Any]]
Overrides = dict[str, Any]
"""Values of a configuration by their dotted keys."""

GRIDS: dict[str, Grid] = {
    # Fig. 4
    "matching_by_regime": {"objective.setting": SETTINGS, "data.images_per_class": [10, 20, 50, 100, 200, None]},
    # Table 3, with one data set per name in --data
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
"""Name of a data set that was given none; no trial is named after it."""

Kind = Literal["uniform", "loguniform", "randint", "choice"]
_KINDS = get_args(Kind)


@dataclass(frozen=True)
class Distribution:
    """Numbers from `low` to `high`, without `high` for `randint`; for `choice` they are indices of `choices`."""

    kind: Kind
    low: float
    high: float
    choices: tuple[Any, ...] = ()

    def draw(self, random: np.random.RandomState) -> Any:
        """One value."""
        if self.kind == "uniform":
            return float(random.uniform(self.low, self.high))
        if self.kind == "loguniform":
            return float(np.exp(random.uniform(np.log(self.low), np.log(self.high))))
        number = int(random.randint(int(self.low), int(self.high)))
        return self.choices[number] if self.kind == "choice" else number

    def may_draw(self, value: Any) -> bool:
        """Whether `draw` can return this value."""
        if self.kind == "choice":
            return value in self.choices
        if self.kind == "randint":
            return value in range(int(self.low), int(self.high))
        return isinstance(value, int | float) and self.low <= value <= self.high


@dataclass(frozen=True)
class Trial:
    """One cell of a grid."""

    name: str
    """Its folder."""
    data: str
    """Name of its data set."""
    overrides: Overrides


@dataclass(frozen=True)
class Space:
    """Everything a sweep may try: lists are tried in all combinations, distributions are drawn from."""

    axes: Grid
    distributions: dict[str, Distribution]
    fixed: Overrides
    """Settings that all trials share; they are in no name."""

    @property
    def together(self) -> list[list[str]]:
        """The keys that an axis sets together, for each such axis."""
        return [keys for axis, values in self.axes.items() if len(keys := _keys(axis, values)) > 1]

    def holds(self, overrides: Mapping[str, Any]) -> bool:
        """Whether a search over this space may have drawn these settings."""
        if overrides.keys() != self.axes.keys() | self.distributions.keys() | self.fixed.keys():
            return False
        lists = self.axes | {key: [value] for key, value in self.fixed.items()}
        return all(overrides[key] in values for key, values in lists.items()) and all(
            from_.may_draw(overrides[key]) for key, from_ in self.distributions.items()
        )

    def trial(self, data: str, varied: Mapping[str, Any]) -> Trial:
        """The trial of these settings, beside those that all trials share."""
        return Trial(trial_name(data, varied), data, self.fixed | dict(varied))


def load_space(grid: str, changes: Sequence[str] = (), seeds: Sequence[int] = (), base_seed: int = 0) -> Space:
    """A named grid, or a YAML file of dotted keys with lists or distributions.

    Args:
        grid: a name of `GRIDS` or the path of a file with lines such as `optim.base_lr: {loguniform: [1e-5, 1e-3]}` or
            `together: [[augment.local_sizes, augment.num_local_crops]]`.
        changes: axes such as `optim.base_lr=1e-4,5e-4`, which replace those of the grid or are added to them. A single
            value that is added is a setting of all trials. `together=[KEY,KEY]` is possible as well.
        seeds: values of the axis `seed`; without them and without such an axis in the grid, it is `base_seed`.
        base_seed: the seed of what all trials share.

    Raises:
        ValueError: there is no such grid or file, an axis is neither a list nor a distribution, two axes set one key,
            or axes that go together have unequal numbers of values.
    """
    tree = _tree(grid)
    changed = dict(map(_change, changes))
    if len(changed) < len(changes):
        raise ValueError(f"--grid names an axis twice: {' '.join(changes)}; list all its values once")
    given = {**tree, **changed}
    bundles = _bundles(given.pop(TOGETHER, []))
    space = Space({}, {}, {})
    for key, values in given.items():
        if key in changed and len(values) == 1 and key not in {*tree, *itertools.chain(*bundles)}:
            space.fixed[key] = _value(key, values[0])
        elif isinstance(values, list) and values and not any(map(_is_distribution, values)):
            space.axes[key] = [_value(key, value) for value in values]
        elif _is_distribution(values):
            space.distributions[key] = _distribution(key, *next(iter(values.items())))
        else:
            raise ValueError(
                f"axis {key} must be a list of values or one of {', '.join(_KINDS)} with its arguments, "
                f"such as {{loguniform: [1e-5, 1e-3]}}, not {values!r}"
            )
    keys = _checked_keys(space)
    axes = space.axes
    for bundle in bundles:
        axes = _zipped(axes, bundle)
    if "seed" in keys and seeds:
        raise ValueError("the grid has an axis seed already; leave out --seeds, or the axis")
    if "seed" not in keys:
        axes["seed"] = list(seeds) or [base_seed]
    return Space(axes, space.distributions, space.fixed)


def trials(space: Space, data: Sequence[str], samples: int = 1, seed: int = 0) -> list[Trial]:
    """All combinations of the lists, on every data set, each with `samples` draws where there are distributions.

    Draws follow from `seed`: the same sweep tries the same values whenever it is started. A draw that repeats another
    makes no trial.
    """
    random = np.random.RandomState(seed)
    drawn = [
        {key: from_.draw(random) for key, from_ in space.distributions.items()}
        for _ in range(samples if space.distributions else 1)
    ]
    draws = [draw for number, draw in enumerate(drawn) if draw not in drawn[:number]]
    axes = [[_settings(axis, value) for value in values] for axis, values in space.axes.items()]
    found: dict[str, Trial] = {}
    for name, cell, draw in itertools.product(data, itertools.product(*axes), draws):
        trial = space.trial(name, {key: value for part in (*cell, draw) for key, value in part.items()})
        if trial.name in found:
            raise ValueError(f"two trials would be called {trial.name}; name each value of an axis once")
        found[trial.name] = trial
    return list(found.values())


def trial_name(data: str, varied: Mapping[str, Any]) -> str:
    """A folder's name: the data set and the values, and a digest that tells apart values that look alike here.

    >>> trial_name("data", {"objective.setting": "geometric", "optim.base_lr": 0.00012341, "seed": 0})
    'setting_geometric-base_lr_0.0001234-seed_0-fb627d'
    """
    parts = [] if data == UNNAMED else [data]
    for key, value in varied.items():
        shown = "none" if value is None else f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
        parts.append(f"{key.rpartition('.')[2]}_{shown.strip(chr(34))}")
    name = re.sub(r"[^\w.+-]+", "_", "-".join(parts))
    digest = hashlib.sha256(json.dumps([data, sorted(varied.items())]).encode()).hexdigest()[:_DIGEST]
    return f"{name[: _LONGEST_NAME - 1 - _DIGEST]}-{digest}"


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


_LONGEST_NAME, _DIGEST = 120, 6
_NAMED_SOURCE = re.compile(r"([\w-]+)=(.+)")
_CALL = re.compile(r"\w\(")
_DEFAULTS = Config().flat()


def _tree(grid: str) -> Mapping[str, Any]:
    """The grid of that name or in that file, as it is written."""
    if grid in GRIDS:
        return GRIDS[grid]
    if Path(grid).suffix not in {".yaml", ".yml"} or not Path(grid).is_file():
        raise ValueError(f"there is no grid {grid!r}; choose from {', '.join(GRIDS)}, or give the path of a YAML file")
    tree = parsed_yaml(Path(grid).read_bytes(), grid) or {}
    if not isinstance(tree, dict):
        raise ValueError(f"{grid} must map dotted keys to lists or distributions")
    return tree


def _change(text: str) -> tuple[str, Any]:
    """`optim.base_lr=1e-4,5e-4` as an axis."""
    key, equals, values = text.partition("=")
    if not equals or not key or not values:
        raise ValueError(f"--grid {text!r} must be KEY=VALUE,VALUE, such as optim.base_lr=1e-4,5e-4")
    listed = parsed_yaml(f"[{values}]", f"the list of values in --grid {text!r}")
    if _CALL.search(values) or any(map(_is_distribution, listed)):
        raise ValueError(
            f"--grid {text!r} names a distribution, and --grid takes only values; write it into a YAML file and give "
            f"that as STUDY, such as {key}: {{loguniform: [1e-5, 1e-3]}} ({', '.join(_KINDS)})"
        )
    return key, listed


def _value(key: str, value: Any) -> Any:
    """The value of that key that a user means; YAML takes 1e-4 and None for words, and 1 for a whole number."""
    if isinstance(value, Mapping):
        return {key: _value(key, part) for key, part in value.items()}
    if isinstance(value, list):
        return [_value(key, part) for part in value]
    default = _DEFAULTS.get(key)
    if isinstance(value, str) and not isinstance(default, str):
        if value == "None":
            return None
        try:
            return float(value)
        except ValueError:
            return value
    return float(value) if type(value) is int and isinstance(default, float) else value


def _is_distribution(values: Any) -> bool:
    return isinstance(values, Mapping) and len(values) == 1 and next(iter(values)) in _KINDS


def _distribution(key: str, kind: Kind, given: Any) -> Distribution:
    values = _value(key, given)
    if kind == "choice":
        if isinstance(values, list) and values:
            return Distribution(kind, 0, len(values), tuple(values))
        needed = "a list of values"
    else:
        number = int if kind == "randint" else (int, float)
        if isinstance(values, list) and len(values) == 2 and all(isinstance(value, number) for value in values):
            low, high = values
            if low < high and (low > 0 or kind != "loguniform"):
                return Distribution(kind, low, high)
        needed = "two whole numbers" if kind == "randint" else "two numbers"
        needed += ", the lower one first" + (" and above 0" if kind == "loguniform" else "")
    raise ValueError(f"axis {key}: {kind} cannot take {given!r}; give it {needed}")


def _bundles(lists: Any) -> list[list[str]]:
    """The lists of `together`."""
    if not isinstance(lists, list) or not all(isinstance(keys, list) and len(keys) > 1 for keys in lists):
        raise ValueError(
            f"{TOGETHER} must hold lists of axes, such as [[augment.local_sizes, augment.num_local_crops]] (--grid "
            f"'{TOGETHER}=[augment.local_sizes,augment.num_local_crops]'), not {lists!r}"
        )
    bundles = [[str(key) for key in keys] for keys in lists]
    named = list(itertools.chain(*bundles))
    if repeated := [key for key in named if named.count(key) > 1]:
        raise ValueError(f"{TOGETHER} names {repeated[0]} twice; an axis goes into one list, once")
    return bundles


def _zipped(axes: Grid, keys: Sequence[str]) -> Grid:
    """The axes, of which those of the keys have become one, at the place of the first."""
    if lacking := [key for key in keys if key not in axes]:
        raise ValueError(
            f"{TOGETHER} names {lacking[0]}, which is not an axis with a list of values; {', '.join(axes)} are"
        )
    if len({len(axes[key]) for key in keys}) > 1:
        counts = ", ".join(f"{key} has {len(axes[key])}" for key in keys)
        raise ValueError(f"axes that go together need equal numbers of values, and {counts}")
    rows = zip(*([_settings(key, value) for value in axes[key]] for key in keys), strict=True)
    values = [{key: value for part in row for key, value in part.items()} for row in rows]
    named = {" and ".join(keys): values}
    parts = [named if axis == keys[0] else {axis: axes[axis]} for axis in axes if axis not in keys[1:]]
    return {axis: values for part in parts for axis, values in part.items()}


def _settings(axis: str, value: Any) -> Overrides:
    """Dotted keys that one value of an axis sets."""
    return dict(value) if isinstance(value, Mapping) else {axis: value}


def _keys(axis: str, values: Sequence[Any]) -> list[str]:
    """Dotted keys that an axis sets, each once."""
    return list(dict.fromkeys(key for value in values for key in _settings(axis, value)))


def _checked_keys(space: Space) -> set[str]:
    """All dotted keys of the space, each set by one axis."""
    of_lists = {axis: _keys(axis, values) for axis, values in space.axes.items()}
    setting: dict[str, str] = {}
    for axis, keys in (of_lists | {key: [key] for key in (*space.distributions, *space.fixed)}).items():
        for key in keys:
            if not isinstance(key, str):
                raise ValueError(f"{key!r} is not a setting; an axis is a dotted key such as optim.base_lr")
            if key in setting:
                several = setting[key] if axis == key else axis
                raise ValueError(
                    f"{key} is set by the axis {setting[key]} and by {axis}; leave one out, or give all that {several} "
                    f"is to set: --grid '{several}={{{key}: ..., ...}}'"
                )
            setting[key] = axis
    return set(setting)
