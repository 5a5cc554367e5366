"""Presets and files of settings as configurations, some of which follow from the number of images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import PrivateAttr, model_validator

from glsd.config import Config, overridden, validated
from glsd.record import flatten, nested, parsed_yaml, unknown
from glsd.scaling import small_data

SMALL_DATA: Final = "small_data"
"""The preset that is a function of the number of images."""
_PRESETS = Path(__file__).with_name("presets")


class ScaledConfig(Config):
    """A configuration of which some settings, those in `derived`, follow from the number of images.

    Until `for_images` they have default values, with which nothing is trained.
    """

    _derived: tuple[str, ...] = PrivateAttr(())

    @property
    def derived(self) -> tuple[str, ...]:
        """Keys of the settings that follow from the number of images, because nobody gave them."""
        return self._derived

    @model_validator(mode="after")
    def _consistent(self) -> "ScaledConfig":
        return self  # `for_images` checks the settings together

    def for_images(self, num_images: int) -> Config:
        """The configuration of a run on that many images.

        Raises:
            ValueError: what was given is impossible with so many images.
        """
        values = small_data(
            num_images,
            batch_size=None if "optim.batch_size" in self.derived else self.optim.batch_size,
            epochs=None if "optim.epochs" in self.derived else self.optim.epochs,
            keep_every_epochs=self.keep_every_epochs,
        )
        try:
            return validated(Config, nested(self.flat() | {key: values[key] for key in self.derived}))
        except ValueError as error:
            raise ValueError(f"for {num_images:,} images: {error}") from error

    def with_overrides(self, overrides: Mapping[str, Any]) -> "ScaledConfig":
        """This configuration with dotted leaves replaced, which are then not derived.

        Raises:
            ValueError: a key does not exist, or a value is impossible for every number of images.
        """
        derived = [key for key in self.derived if key not in overrides]
        return _scaled(nested(overridden(self.flat(), overrides)), derived)

    def to_yaml(self) -> str:
        """YAML that `load_config` reads back: the name of the preset, and what does not follow from it."""
        given = {key: value for key, value in self.flat().items() if key not in self.derived}
        return yaml.safe_dump({"preset": SMALL_DATA} | nested(given), sort_keys=False)


def load_config(name: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """The preset of this name, or the YAML file at this path, with dotted overrides.

    A file may name a preset that it builds on, `preset: NAME`. On `small_data` it is a `ScaledConfig`.

    Raises:
        ValueError: no such preset or file, an unknown key, or an impossible value; the message names it.
    """
    source, given = _read(str(name))
    try:
        base, tree = given.pop("preset", None), nested(given)
        if base is None:
            config = _scaled(tree, list(small_data(1))) if str(name) == SMALL_DATA else validated(Config, tree)
        elif base in presets():
            config = load_config(base, flatten(tree))
        else:
            raise ValueError(unknown("preset", str(base), presets()))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return config.with_overrides(overrides or {})


def presets() -> list[str]:
    """Names of the presets that come with glsd."""
    return sorted(file.stem for file in _PRESETS.glob("*.yaml"))


def _read(name: str) -> tuple[str, dict[Any, Any]]:
    """How a preset or a file is named in messages, and what it holds."""
    if name in presets():
        source, file = f"preset {name}", _PRESETS / f"{name}.yaml"
    elif Path(name).suffix in {".yaml", ".yml"} and Path(name).is_file():
        source, file = name, Path(name)
    else:
        raise ValueError(f"{unknown('preset', name, presets())} (or give the path of a YAML file)")
    try:
        text = file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text: {error}") from error
    given = parsed_yaml(text, source)
    if not isinstance(given, dict | None):
        raise ValueError(f"{source} holds no settings; write one per line, such as `seed: 0` or `optim.epochs: 100`")
    return source, given or {}


def _scaled(tree: Mapping[str, Any], derived: Sequence[str]) -> ScaledConfig:
    """A `ScaledConfig`, if it is possible for some number of images."""
    config = validated(ScaledConfig, tree)
    config._derived = tuple(derived)
    refusals = []
    for num_images in (512, 1024, 2048, 4096, 8192):  # of each batch size, those with the most epochs
        try:
            config.for_images(num_images)
            return config
        except ValueError as error:
            refusals.append(error)
    raise ValueError(f"no number of images makes this possible; {refusals[-1]}") from refusals[-1]
