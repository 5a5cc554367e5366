"""Whether an index of so many files fits into memory while it is made."""

import math
from contextlib import suppress
from pathlib import Path


def check_memory(num_files: int, name_bytes: int, free: float) -> None:
    """Refuse files of which an index would not fit into so many bytes of memory; estimated by what ten million took.

    Images within tars take less, and are not known before the tars are read.
    """
    needed = 2 * name_bytes + 100 * num_files
    if needed > free:
        raise ValueError(
            f"an index of {num_files:,} files takes about {needed / 1e9:.1f} GB of memory while it is made, and this "
            f"machine has {free / 1e9:.1f} GB; `glsd pack` parts of the data into tars, and name these as data"
        )


def free_memory() -> float:
    """Bytes that this process may still take, where the system tells."""
    free = math.inf
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError, KeyError):  # as where a group has no limit, which is called max
        limit, used = (int((group / name).read_text("utf-8")) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text("utf-8").splitlines())
        files = int(stat["inactive_file"]) + int(stat["active_file"])  # which make way
        free = min(free, limit - used + files)
    return float(free)
