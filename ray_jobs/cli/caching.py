"""`glsd cache`: what is kept in the cache folder, what it is for, and how it is cleared."""

import json
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from glsd.data.index import Index
from glsd.runs.lease import TIMES, read_holder
from glsd.storage.cache import ABOUT, cache_folder, remove
from glsd.storage.folder import Folder
from ray_jobs.progress import duration_text

Kind = Literal["representations", "packed", "images", "indexes", "layers"]
_NAMES: dict[Kind, str] = {
    "representations": r"features-[0-9a-f]{32}(\.unfinished)?|untrained-[0-9a-f]{32}\.json",
    "packed": r"packed-[0-9a-f]{32}(\.unfinished|\.parts)?",
    "images": r"images-[0-9a-f]{32}(\.unfinished)?",
    "indexes": r"index-(\d+-)?[0-9a-f]{32}(-[0-9a-f]{8})?\.(arrow|unfinished)",
    "layers": r"linear/[0-9a-f]{20}(\.unfinished)?",
}
"""Names of entries below the cache folder; anything else there is not ours."""


class Entry(NamedTuple):
    """Something in the cache folder."""

    kind: Kind
    path: Path
    num_bytes: int
    """On disk, where files may have holes."""
    changed_at: float
    """Seconds since 1970."""
    purpose: str
    """What it is for."""


def entries() -> list[Entry]:
    """All entries, the largest of each kind first."""
    cache = cache_folder()
    ours = {
        path: kind
        for path in sorted([*cache.iterdir(), *cache.glob("linear/*")])
        for kind, names in _NAMES.items()
        if re.fullmatch(names, path.relative_to(cache).as_posix())
    }
    purposes = _of_indexes([path for path in ours if path.suffix == ".arrow"])
    found = []
    for path, kind in ours.items():
        with suppress(FileNotFoundError):  # its job has deleted it, or is about to rename it
            stats = [file.lstat() for file in (path, *path.rglob("*")) if file.is_file()]
            changed_at = max((stat.st_mtime for stat in stats), default=path.lstat().st_mtime)
            num_bytes = sum(512 * stat.st_blocks for stat in stats)
            found.append(Entry(kind, path, num_bytes, changed_at, _purpose(path, purposes)))
    kinds = get_args(Kind)
    return sorted(found, key=lambda entry: (kinds.index(entry.kind), -entry.num_bytes))


def clear(what: Kind | Literal["all"]) -> tuple[list[Entry], list[Entry]]:
    """Delete the entries of a kind; what was deleted, and what stays because a running process uses it."""
    deleted: list[Entry] = []
    used: list[Entry] = []
    for entry in entries():
        if what in (entry.kind, "all"):
            is_gone = not _is_leased(entry) and remove(entry.path)
            (deleted if is_gone else used).append(entry)
    return deleted, used


def cache_table(found: list[Entry]) -> str:
    """Entries for people."""
    lines = [f"{cache_folder()}: {_size(found)}"]
    for entry in found:
        age = duration_text(max(0.0, time.time() - entry.changed_at))
        lines.append(f"  {entry.kind:<15}  {_gigabytes(entry.num_bytes):>9}  {age:>12} old  {entry.purpose}")
    return "\n".join(lines)


def cleared_table(deleted: list[Entry], used: list[Entry]) -> str:
    """What `clear` did, for people."""
    lines = [f"deleted {_size(deleted)}"]
    if used:
        lines.append(f"left {_size(used)}, which running processes use; clear them when these have ended")
        lines += [f"  {entry.kind:<15}  {entry.purpose}" for entry in used]
    return "\n".join(lines)


def _size(found: list[Entry]) -> str:
    return f"{len(found)} entries, {_gigabytes(sum(entry.num_bytes for entry in found))}"


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def _of_indexes(paths: list[Path]) -> dict[Path, str]:
    """What indexes are for, and the packed tars that they name."""
    purposes = {}
    for path in paths:
        index = Index(path)
        try:
            purposes[path] = f"{len(index):,} images of {', '.join(index.sources)}"
            purposes |= {Path(folder): purposes[path] for folder in index.packed}
        except ValueError:
            purposes[path] = "a broken index"
    return purposes


def _purpose(path: Path, indexed: dict[Path, str]) -> str:
    if path in indexed:
        return indexed[path]
    about = path / ABOUT if path.is_dir() else path
    if about.suffix == ".json" and about.exists():
        return str(json.loads(about.read_bytes())["about"])
    return "a linear layer" if path.parent.name == "linear" else "for data without an index here"


def _is_leased(entry: Entry) -> bool:
    """Whether a driver trains the layer; of one that is dead the heartbeat has ended."""
    holder = read_holder(Folder(entry.path)) if entry.kind == "layers" else None
    return holder is not None and holder.silent_s < TIMES.lapse_s
