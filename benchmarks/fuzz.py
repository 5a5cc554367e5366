"""Mutated files for every reader of images, indexes, settings and runs: each is read, or refused with a message.

A refusal is a ValueError or OSError that names the file. Anything else counts as another exception: a crash of the
process, more than a minute of CPU time, or more than 2 GiB of memory too. All inputs are read by one process, which is
started again when it dies. Input n of a reader is a function of the seed, so a failure is seen again by
`--readers NAME --first N --inputs 1`.
"""

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

_MEMORY: Final = 2 << 30
_LONGEST_S: Final = 60
_EXPECTED: Final = ("refused", "read")


class Read(NamedTuple):
    """What became of an input."""

    reader: str
    number: int
    outcome: str
    """`read`, `refused`, or what else came of it."""
    seconds: float


def mutated(reader_files: Sequence[bytes], words: Sequence[bytes], key: str, number: int) -> bytes:
    """Input `number` of a reader: its whole files first, then one of them with one to four changes."""
    if number < len(reader_files):
        return reader_files[number]
    draw = random.Random(f"{key} {number}")
    data = bytearray(draw.choice(reader_files))
    for _ in range(draw.randint(1, 4)):
        _change(data, draw, words, draw.choice(reader_files))
    return bytes(data)


def _change(data: bytearray, draw: random.Random, words: Sequence[bytes], other: bytes) -> None:
    # Headers are at the beginning or the end, and short; anywhere else is mostly pixels.
    length = len(data)
    near = min(length, draw.choice((64, 512, length)))
    place = draw.randrange(near + 1) if draw.random() < 0.7 else length - draw.randrange(near + 1)
    some = draw.randint(1, draw.choice((4, 64, 4096)))
    match draw.randrange(8):
        case 0 if place < length:
            data[place] ^= 1 << draw.randrange(8)
        case 1:
            data[place : place + 1] = bytes([draw.randrange(256)])
        case 2:
            size = draw.choice((1, 2, 4, 8))
            value = draw.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1))
            data[place : place + size] = value.to_bytes(size, draw.choice(("little", "big")))
        case 3:
            del data[place : place + some]
        case 4:
            data[place:place] = data[place : place + some]
        case 5:
            del data[place:]
        case 6 if words:
            word = draw.choice(words)
            data[place : place + draw.choice((0, len(word)))] = word
        case _:
            start = draw.randrange(len(other) + 1)
            data[place : place + some] = other[start : start + some]


def work(names: Sequence[str], seed: int, first: int, inputs: int, skipped: int) -> None:
    """Read the inputs from number `skipped` on, in this process, and print a line for each."""
    from benchmarks.fuzz_readers import readers

    warnings.simplefilter("ignore")
    names, warm = names or list(readers()), ""
    last = first + max(1, inputs // len(names))
    with tempfile.TemporaryDirectory() as folder:
        for count, (name, number) in enumerate(_inputs(names, first, last)):
            if count == 0:
                _limit_memory()
            if count >= skipped:
                if name != warm:  # what is imported takes no time of an input
                    _outcome(name, seed, 0, Path(folder))
                    warm = name
                print(name, number, sep="\t", end="\t", flush=True)
                signal.setitimer(signal.ITIMER_PROF, _LONGEST_S)  # of CPU time; ends the process
                began = time.monotonic()
                outcome = _outcome(name, seed, number, Path(folder))
                signal.setitimer(signal.ITIMER_PROF, 0)
                print(outcome, f"{time.monotonic() - began:.3f}", sep="\t", flush=True)


def _inputs(names: Sequence[str], first: int, last: int) -> Iterator[tuple[str, int]]:
    return ((name, number) for name in names for number in range(first, last))


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))


def _outcome(name: str, seed: int, number: int, folder: Path) -> str:
    from benchmarks.fuzz_readers import readers

    reader = readers()[name]
    content = mutated(reader.files, reader.words, f"{seed} {name}", number)
    if number >= len(reader.files) and number % 2:
        content = reader.mend(content)
    for place in folder.iterdir():
        shutil.rmtree(place)
    path = folder / "input" / reader.name
    path.parent.mkdir()
    path.write_bytes(content)
    try:
        reader.read(path)
    except (ValueError, OSError) as error:
        return "refused" if not reader.is_named or str(path.parent) in str(error) else _told(error, "no file named: ")
    except BaseException as error:  # noqa: BLE001 - all that escapes is what is looked for
        return _told(error, "")
    return "read"


def _told(error: BaseException, prefix: str) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{prefix}{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
    return text.encode("ascii", "backslashreplace").decode().replace("\t", " ").replace("\n", " ")[:500]


def fuzz(inputs: int, seed: int = 0, names: Sequence[str] = (), first: int = 0) -> list[Read]:
    """What became of so many inputs, the same number of each reader; by default of all readers."""
    found: list[Read] = []
    while True:
        options = ["--seed", str(seed), "--first", str(first), "--inputs", str(inputs), "--skipped", str(len(found))]
        command = [sys.executable, "-m", "benchmarks.fuzz", *options, *(["--readers", *names] if names else [])]
        environment = os.environ | {"MALLOC_ARENA_MAX": "2"}  # each reserves 64 MiB, and threads come and go
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, encoding="ascii") as worker:
            assert worker.stdout is not None
            for line in worker.stdout:
                name, number, *outcome = line.split("\t")
                if outcome[-1].endswith("\n"):
                    found.append(Read(name, int(number), outcome[0], float(outcome[1])))
        if worker.returncode == 0:
            return found
        if worker.returncode > 0:
            raise RuntimeError(f"{' '.join(command)} ended with status {worker.returncode}")
        found.append(Read(name, int(number), signal.Signals(-worker.returncode).name, _LONGEST_S))


def table(found: Sequence[Read]) -> str:
    """A row for each reader, and below it the inputs that were neither read nor refused."""
    lines = [
        "| reader | inputs | refused with a message | read | other exceptions | longest s |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(read.reader for read in found):
        of_it = [read for read in found if read.reader == name]
        lines.append(_row(name, of_it))
    lines.append(_row("all", found))
    others = [
        f"{read.reader} {read.number}: {read.outcome}" for read in found if read.outcome not in ("read", "refused")
    ]
    return "\n".join([*lines, *others])


def _row(name: str, found: Sequence[Read]) -> str:
    refused, read = (sum(one.outcome == outcome for one in found) for outcome in _EXPECTED)
    longest = max(one.seconds for one in found)
    return f"| {name} | {len(found):,} | {refused:,} | {read:,} | {len(found) - refused - read:,} | {longest:.2f} |"


def main() -> None:
    """Print the table, or read inputs as the process that may die."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="+", default=[])
    parser.add_argument("--first", type=int, default=0, help="number of the first input of each reader")
    parser.add_argument("--skipped", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.skipped is None:
        found = fuzz(options.inputs, options.seed, options.readers, options.first)
        print(table(found))
        sys.exit(any(one.outcome not in _EXPECTED for one in found))
    work(options.readers, options.seed, options.first, options.inputs, options.skipped)


if __name__ == "__main__":
    main()
