"""The index of a job's data, with its progress shown."""

from pathlib import Path

from glsd.config import Config
from glsd.data.index import Index, build_index
from glsd.data.sources import Sources
from glsd.storage.cache import use
from ray_jobs.progress import ProgressLine


def indexed(sources: Sources, config: Config, line: ProgressLine) -> Index:
    """The index of the sources, with its progress shown."""
    line.phase("indexing", "images")
    index = build_index(
        sources,
        config.data,
        progress=lambda count: line.phase("indexing", f"images: {count:,} so far") if count else None,
    )
    for path in (index.path, *map(Path, index.packed)):
        use(path)
    of_classes = f" of {_counted(len(index.classes), 'class', 'classes')}" if index.classes else ", no labels"
    line.phase(f"found {_counted(len(index), 'image', 'images')}{of_classes}")
    return index


def _counted(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"
