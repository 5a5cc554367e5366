"""`glsd VERB ...`: the command line.

A verb with settings takes the name of a preset (or a YAML file) first. Each setting can then be given by its dotted
key. Verbs that need no cluster import no Ray.
"""

import difflib
import inspect
import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass, make_dataclass, replace
from importlib.metadata import version
from typing import Annotated, Any, NoReturn, get_origin

import tyro
from pydantic import ValidationError

from glsd.config import Config
from glsd.experiments import ScaledConfig, load_config, presets
from glsd.record import explained
from ray_jobs.cli.settings import FOLLOWS, overrides
from ray_jobs.cli.verbs import VERBS, Flattened
from ray_jobs.settings import JobSettings


def _check_no_credentials(arguments: Sequence[str]) -> None:
    """Refuse URIs with credentials before any argument is shown."""
    if uris := [argument for argument in arguments if "://" in argument]:
        from glsd.storage.uris import check_no_credentials  # imports pyarrow

        for uri in uris:
            check_no_credentials(uri)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb. An error that a user can fix is one line on stderr with exit status 2; Ctrl-C has status 130."""
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
    except BrokenPipeError:  # the reader has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except ValidationError as error:
        sys.exit(_failed(explained(error)))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(_failed(str(error)))
    except KeyboardInterrupt:
        _failed("interrupted; rerun the same command to resume")
        sys.exit(128 + signal.SIGINT)


class _StandardError(io.TextIOWrapper):
    """Standard error that ends no job: text is dropped if its reader has left or the disk is full."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            return super().write(text)
        return len(text)


def _prepare_streams() -> None:
    """Make all streams writable: closed ones go nowhere, and characters that an encoding lacks are escaped.

    Otherwise a file that is opened later would get the number of a closed stream, and the text that libraries print.
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
    flags = [word.partition("=")[0].replace("-", "_") for word in rest]
    for option, kind in _options(arguments):
        if get_origin(kind) is tuple and flags.count(f"__{option}") > 1:
            raise ValueError(f"--{option} is given twice; give all its values after one --{option}")
    program = f"glsd {verb}"
    if preset is None:
        return tyro.cli(arguments, args=rest, prog=program, use_underscores=True)
    asks_help = bool({"-h", "--help"} & set(rest))
    if preset == "":
        if not rest or rest[0].startswith("-"):
            if asks_help:
                print(f"usage: {program} PRESET [OPTIONS]; `{program} PRESET --help` lists them\n")
                print(f"{inspect.getdoc(arguments)}\n\nPresets: {', '.join(presets())}, or a path to a YAML file")
                sys.exit(0)
            raise ValueError(f"{program} needs a preset first: {', '.join(presets())}, or a path to a YAML file")
        preset, *rest = rest
        program += f" {preset}"
    config = load_config(preset)
    if asks_help:
        _help(arguments, config, program)
    parsed, words = tyro.cli(arguments, args=rest, prog=program, use_underscores=True, return_unknown_args=True)
    return replace(
        parsed, config=config.with_overrides(overrides(words, [option for option, _ in _options(arguments)]))
    )


def _help(arguments: type[Any], config: Config, program: str) -> NoReturn:
    """Print the options of a verb and the settings, and exit."""
    required = {field.name: tyro.MISSING for field in fields(arguments) if field.default is MISSING}
    both = make_dataclass(
        arguments.__name__, [("verb", Annotated[arguments, Flattened]), ("config", Annotated[Config, Flattened])]
    )
    text = inspect.getdoc(arguments) or ""
    if isinstance(config, ScaledConfig):
        text += f"\n\nEach of these {FOLLOWS}: {', '.join(config.derived)}."
    default = both(arguments(**required), config)
    tyro.cli(both, args=["--help"], prog=program, description=text, default=default, use_underscores=True)
    raise AssertionError("tyro exits after --help")


def _options(record: Any) -> Iterator[tuple[str, Any]]:
    """Names and types of a verb's own options."""
    for field in fields(record):
        if is_dataclass(field.default):
            yield from _options(field.default)
        elif isinstance(field.default, JobSettings):
            yield from ((name, job.annotation) for name, job in JobSettings.model_fields.items())
        elif not isinstance(field.default, Config):
            yield field.name, field.type


def _overview() -> str:
    title = "Pretrain vision backbones on your own images: Global-Local Self-Distillation on Ray."
    verbs = [f"  {verb:<10}{str(arguments.__doc__).splitlines()[0]}" for verb, (arguments, _) in VERBS.items()]
    return "\n".join([title, "", "glsd VERB ...", *verbs, "", "`glsd VERB --help` lists its options."])


def _failed(message: str) -> int:
    print(f"glsd: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
