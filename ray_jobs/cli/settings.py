"""Settings on the command line, `--KEY VALUE`: from words to overrides, and from a configuration to what is printed."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from glsd.config import Config
from glsd.experiments import SMALL_DATA, ScaledConfig
from glsd.record import documentation, unknown

FOLLOWS = "follows from the number of images, unless it is given (glsd/scaling.py)"


def overrides(words: Sequence[str], options: Iterable[str]) -> dict[str, Any]:
    """What is given for each setting, for `load_config`; the last of equal flags counts, and null is no value.

    Args:
        words: the command line without the options of its verb.
        options: names of these options, for who misspells one.

    Raises:
        ValueError: there is no such setting, or its value is missing.

    >>> overrides(["--optim.epochs", "30", "--augment.local-sizes=96", "--data.fraction", "null"], ())
    {'optim.epochs': '30', 'augment.local_sizes': ['96'], 'data.fraction': None}
    """
    defaults, given, key = Config().flat(), dict[str, list[str]](), ""
    for word in words:
        if word.startswith("--"):
            flag, mark, value = word.removeprefix("--").partition("=")
            key, values = flag.replace("-", "_"), [value] if mark else []
            if key not in defaults and isinstance(defaults.get(positive := re.sub(r"(^|\.)no_", r"\1", key)), bool):
                key, values = positive, ["false"]
            given[key] = values
        elif key:
            given[key].append(word)
        else:
            raise ValueError(f"{word!r} belongs to no option; write --OPTION {word}")
    for key in given:
        if key not in defaults:
            raise ValueError(unknown("option", f"--{key}", [f"--{name}" for name in (*options, *defaults)]))
    return {key: _value(key, defaults[key], values) for key, values in given.items()}


def _value(key: str, default: Any, given: Sequence[str]) -> Any:
    values = [None if word in {"null", "None"} and not isinstance(default, str) else word for word in given]
    if isinstance(default, list) or len(values) > 1:
        return values
    if not values and not isinstance(default, bool):
        raise ValueError(f"--{key} needs a value, such as --{key} {default}")
    return values[0] if values else True


def documented_yaml(config: Config) -> str:
    """The configuration as YAML that `load_config` reads back, with the documentation of each setting and its default
    where it has another value.
    """
    lines = [
        "# The documentation of a setting ends with its sources in brackets: places in the paper, the authors' code",
        "# where the paper leaves it open, or glsd for what only glsd has.",
        "",
    ]
    derived = config.derived if isinstance(config, ScaledConfig) else ()
    if derived:
        lines += [f"preset: {SMALL_DATA}", ""]
    documents, defaults = documentation(Config), Config().flat()
    section = ""
    for key, value in config.flat().items():
        *path, leaf = key.split(".")
        if path and path[0] != section:
            lines += ["", f"# {getattr(config, path[0]).__doc__}", f"{path[0]}:"]
        section = path[0] if path else ""
        indent = "  " * len(path)
        lines.append(f"{indent}# {documents[key]}")
        if key in derived:
            lines.append(f"{indent}# {leaf} {FOLLOWS}")
            continue
        if value != defaults[key]:
            lines.append(f"{indent}# Default: {_yaml(defaults[key])}")
        lines.append(f"{indent}{leaf}: {_yaml(value)}")
    return "\n".join(lines)


def _yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True, width=1000)).removesuffix("\n").removesuffix("\n...")
