"""The index of a job's data, with its progress shown."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from glsd.config import Config
from glsd.data.index import Index, build_index
from glsd.data.sources import Sources
from glsd.storage.cache import use
from glsd.storage.folder import Folder
from ray_jobs.cluster.files import packed_in
from ray_jobs.cluster.pieces import each_on
from ray_jobs.progress import ProgressLine
from ray_jobs.settings import JobSettings

_adopted: dict[tuple[str, ...], Index] = {}
"""Indexes by their sources."""


def adopt(sources: Sequence[str], index: Index) -> None:
    """Take this for the index of the sources in this process, which then does not list them again."""
    _adopted[tuple(sources)] = index


def keep(index: Index) -> None:
    """Keep what this machine's cache has of an index until this process ends."""
    for path in (index.path, *map(Path, index.packed)):
        if path.parent == index.path.parent:
            use(path)


def indexed(
    sources: Sources,
    config: Config,
    line: ProgressLine,
    job: JobSettings,
    out: Folder | str | None = None,
    option: str = "--data",
) -> Index:
    """The index of the sources that an option names, with its progress shown.

    The pieces of a large one are made on the job's cluster. What must be packed goes beside `out` where the nodes of a
    cluster do not share this machine's cache folder.

    Raises:
        ValueError: a source cannot be used; the message begins with the option.
    """
    if not isinstance(sources, str | Path) and (known := _adopted.get(tuple(map(str, sources)))):
        return known
    line.phase("indexing", "images")
    try:
        index = build_index(
            sources,
            config.data,
            progress=lambda count: line.phase("indexing", f"images: {count:,} so far") if count else None,
            each=each_on(job),
            packed_in=partial(packed_in, job, out),
        )
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error
    keep(index)
    of_classes = f" of {_counted(len(index.classes), 'class', 'classes')}" if index.classes else ", no labels"
    line.phase(f"found {_counted(len(index), 'image', 'images')}{of_classes}")
    return index


def _counted(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"
