"""Peak memory of a command with all the processes that it starts, such as a job with its Ray.

Once a second the processes of the command's session are looked up in /proc (Linux), and their proportional set sizes
added: a page that several processes map, as those of the object store, counts once.

    python benchmarks/peak_memory.py glsd evaluate MODEL --data FOLDER --probes knn correspondence collapse --out DIR
"""

import argparse
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

INTERVAL_S = 1.0
GONE = (FileNotFoundError, ProcessLookupError)


def members(session: int) -> Iterator[Path]:
    """Folders in /proc of a session's living processes."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(*GONE):
                state, _, _, its_session = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[:4]
                if int(its_session) == session and state not in "ZX":
                    yield folder


def proportional_mib(process: Path) -> float:
    """Its proportional set size."""
    sizes = dict(line.split(":", 1) for line in (process / "smaps_rollup").read_text().splitlines()[1:])
    return int(sizes["Pss"].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    command = parser.parse_args().command
    if not command:
        parser.error("name a command")

    started, peak, driver_peak = time.monotonic(), 0.0, 0.0
    process = subprocess.Popen(command, start_new_session=True)
    while process.poll() is None:
        sizes = {}
        for member in members(process.pid):
            with suppress(*GONE, KeyError):
                sizes[member.name] = proportional_mib(member)
        peak, driver_peak = max(peak, sum(sizes.values())), max(driver_peak, sizes.get(str(process.pid), 0.0))
        time.sleep(INTERVAL_S)
    print(f"exit status {process.returncode} after {time.monotonic() - started:.0f} s")
    print(f"peak: {peak:,.0f} MiB in all, {driver_peak:,.0f} MiB of the command's own process")


if __name__ == "__main__":
    main()
