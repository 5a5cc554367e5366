"""`glsd VERB ...`: the command line.

A verb with settings takes a preset's name (or a YAML file) first, which fills the settings in; each can then be given
by its dotted key. Verbs that need no cluster import no Ray.
"""

import difflib
import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import MISSING, fields, replace
from importlib.metadata import version
from typing import Any

import tyro
from pydantic import ValidationError

from glsd.config import Config, explained, load_config, presets
from ray_jobs.cli.verbs import VERBS


def _check_no_credentials(arguments: Sequence[str]) -> None:
    """Before anything of them is shown."""
    if uris := [argument for argument in arguments if "://" in argument]:
        from glsd.storage.uris import check_no_credentials  # imports pyarrow

        for uri in uris:
            check_no_credentials(uri)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb; what a user can mend is one line on stderr and exit status 2, and so is Ctrl-C with status 130."""
    if arguments is None:
        _prepare_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""  # the progress line may stand there
    warnings.showwarning = lambda message, *_: print(f"{clear}glsd: warning: {message}", file=sys.stderr)
    try:
        try:
            _check_no_credentials(given)
            parse(given).run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except ValidationError as error:
        sys.exit(_failed(explained(error)))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(_failed(str(error)))
    except KeyboardInterrupt:
        _failed("interrupted; the same command goes on where it was")
        sys.exit(128 + signal.SIGINT)


class _StandardError(io.TextIOWrapper):
    """Standard error that ends no job: what cannot be written, as its reader has left or a disk is full, is dropped."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            return super().write(text)
        return len(text)


def _prepare_streams() -> None:
    """Streams that take every text: of those that were closed nothing is shown, and what an encoding lacks is escaped.

    Files that are opened later would otherwise get the numbers of closed streams, and what libraries print.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is the stream's own
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w", encoding="utf-8", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    raw = io.FileIO(sys.stderr.fileno(), "w", closefd=False)
    # Without a buffer, as with python -u, in which what cannot be written would stay.
    sys.stderr = _StandardError(raw, sys.stderr.encoding, "backslashreplace", write_through=True)


def parse(given: list[str]) -> Any:
    """The verb with its arguments, ready to `run`."""
    if not given or given[0] in {"-h", "--help"}:
        print(_overview())
        sys.exit(0 if given else 2)
    if given[0] == "--version":
        print(version("glsd"))
        sys.exit(0)
    verb, *rest = given
    if verb not in VERBS:
        nearest = difflib.get_close_matches(verb, VERBS, n=1)
        meant = f", did you mean {nearest[0]}?" if nearest else ";"
        raise ValueError(f"there is no verb {verb!r}{meant} glsd has {', '.join(VERBS)}")
    arguments, preset = VERBS[verb]
    program = f"glsd {verb}"
    if preset is None:
        return tyro.cli(arguments, args=rest, prog=program, use_underscores=True)
    if preset == "":
        if not rest or rest[0].startswith("-"):
            if set(rest) & {"-h", "--help"}:
                print(f"usage: {program} PRESET [OPTIONS]; `{program} PRESET --help` lists them\n\n{arguments.__doc__}")
                print(f"    Presets: {', '.join(presets())}, or a path to a YAML file")
                sys.exit(0)
            raise ValueError(f"{program} needs a preset first: {', '.join(presets())}, or a path to a YAML file")
        preset, *rest = rest
        program += f" {preset}"
    return _with_settings(arguments, load_config(preset), rest, program)


def _with_settings(arguments: type[Any], config: Config, rest: list[str], program: str) -> Any:
    rest = _judged(config, rest)
    required = {field.name: tyro.MISSING for field in fields(arguments) if field.default is MISSING}
    default = arguments(**required, config=config)
    parsed = tyro.cli(arguments, args=rest, prog=program, default=default, use_underscores=True)
    flags = {argument.partition("=")[0] for argument in rest if argument.startswith("--")}
    named = {flag.removeprefix("--").replace("-", "_") for flag in flags}
    remaining = [key for key in parsed.config.auto if key not in named]  # what is given stays as it is given
    return replace(parsed, config=parsed.config.with_overrides({"auto": remaining}))


def _judged(config: Config, rest: list[str]) -> list[str]:
    """The arguments as tyro takes them, once the settings among them were judged together, in our own words.

    Of an impossible value tyro prints pydantic's whole report. No value is None to it, and null in YAML and in what is
    said of the settings.

    Raises:
        ValueError: a value is impossible.
    """
    known, given = config.flat(), dict[str, list[str | None]]()
    arguments, key = list[str](), ""
    for argument in rest:
        flag, mark, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        if flag:
            key = flag.removeprefix("--").replace("-", "_")
        if flag and key in known:
            given[key] = []  # a flag that is given again counts alone
        if key in given and (mark or not flag):
            nothing = value in {"null", "None"} and not isinstance(known[key], str)
            value = "None" if nothing else value
            given[key].append(None if nothing else value)
        arguments.append(f"{flag}{mark}{value}")
    overrides: dict[str, Any] = {}
    for key, values in given.items():
        if isinstance(known[key], list) or len(values) > 1:
            overrides[key] = values
        elif values:
            overrides[key] = values[0]
    config.with_overrides(overrides)
    return arguments


def _overview() -> str:
    lines = [
        "Pretrain vision backbones on your own images: Global-Local Self-Distillation on Ray.",
        "",
        "glsd VERB ...",
    ]
    for verb, (arguments, _) in VERBS.items():
        lines.append(f"  {verb:<10}{(arguments.__doc__ or '').splitlines()[0]}")
    return "\n".join([*lines, "", "`glsd VERB --help` says more."])


def _failed(message: str) -> int:
    print(f"glsd: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
