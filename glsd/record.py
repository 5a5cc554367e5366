"""Frozen records of settings: their documentation, their dotted keys, and their errors in one line; YAML and JSON."""

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class Record(BaseModel):
    """A frozen record whose unknown keys are errors and whose attribute docstrings are its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for field in cls.model_fields.values():
            if field.description is not None:
                field.description = " ".join(field.description.split())  # the help breaks its lines itself


def documentation(record: type[Record], prefix: str = "") -> dict[str, str]:
    """The documentation of every setting by its dotted key."""
    lines: dict[str, str] = {}
    for name, field in record.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Record):
            lines |= documentation(field.annotation, f"{prefix}{name}.")
        else:
            lines[prefix + name] = field.description or ""
    return lines


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one of dotted keys.

    >>> flatten({"a": {"b": 1}, "c": 2})
    {'a.b': 1, 'c': 2}
    """
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return leaves


def nested(leaves: Mapping[Any, Any]) -> dict[str, Any]:
    """A mapping whose keys may be dotted as one of sections, the inverse of `flatten`.

    Raises:
        ValueError: a setting is given twice.

    >>> nested({"a.b": 1, "a": {"c": 2}})
    {'a': {'b': 1, 'c': 2}}
    """
    tree: dict[str, Any] = {}
    for key, value in leaves.items():
        _put(tree, str(key), value)
    return tree


def _put(tree: dict[str, Any], key: str, value: Any, prefix: str = "") -> None:
    """Add what stands under a key, which may be dotted, to a tree of sections."""
    name, dot, inner = key.partition(".")
    value = {inner: value} if dot else value
    is_section = isinstance(value, Mapping)
    if name in tree and not (is_section and isinstance(tree[name], dict)):
        raise ValueError(f"{prefix}{name} is given twice")
    if not is_section:
        tree[name] = value
        return
    section = tree.setdefault(name, {})
    for inner, setting in value.items():
        _put(section, str(inner), setting, f"{prefix}{name}.")


def parsed_json(content: str | bytes, source: str) -> Any:
    """The value of a JSON text; a ValueError names its source where it is not one."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not valid JSON: {error}") from error


class _Loader(yaml.SafeLoader):
    """Plain values, each written out: nine lines with aliases stand for a billion values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*name); write the value out")
        return super().compose_node(parent, index)


# Besides its own, what PyYAML raises on values that do not fit their tags, and on thousands of brackets.
_YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)


def parsed_yaml(content: str | bytes, source: str) -> Any:
    """The value of a YAML text without aliases; a ValueError names its source where it is not one."""
    try:
        return yaml.load(content, _Loader)
    except _YAML_ERRORS as error:
        raise ValueError(f"{source} is not valid YAML: {error}") from error


def explained(error: ValidationError, known: Iterable[str] = ()) -> str:
    """What is wrong with which settings, in one line; an unknown key is answered with the nearest of those `known`."""
    return "; ".join(_explained(part, known) for part in error.errors())


def _explained(part: Any, known: Iterable[str]) -> str:
    key = ".".join(str(name) for name in part["loc"])
    if part["type"] == "extra_forbidden":
        return unknown("setting", key, known)
    message = part["msg"].removeprefix("Value error, ")
    if part["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {message}, not {part['input']!r}"


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """That a name does not exist, with the nearest spelling of those that do."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"there is no {kind} {name!r}" + (f"; did you mean {nearest[0]!r}?" if nearest else "")
