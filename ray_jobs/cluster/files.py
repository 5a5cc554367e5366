"""Contents of files for all nodes of a cluster."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import ray

from glsd.data.index import Index
from glsd.storage.cache import cache_folder
from glsd.storage.folder import Folder
from glsd.storage.replacing import alone, replace_file
from glsd.storage.uris import is_remote
from ray_jobs.cluster.asking import asked_of
from ray_jobs.cluster.start import cluster, starts_own_ray
from ray_jobs.settings import JobSettings

PACKED: Final = ".packed"
"""The ending of a folder for packed images beside what a job writes."""
SharedFiles = dict[str, "ray.ObjectRef[pa.Buffer]"]
"""Contents of files by their path: one object per node, however many tasks need them."""


def share_files(indexes: Sequence[Index]) -> SharedFiles:
    """The indexes' files in the object store."""
    return {str(index.path): ray.put(pa.memory_map(str(index.path)).read_buffer()) for index in indexes}


def place_files(files: SharedFiles) -> None:
    """Write those that this node lacks, one process for all. An index's path names its content, so a file that exists
    is the same.
    """
    for path, content in ((Path(name), content) for name, content in files.items()):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with alone(path.with_suffix(".lock")):
                if not path.exists():  # it was not, before others held the lock
                    replace_file(path, memoryview(ray.get(content)))


def _exists(path: str) -> bool:
    return Path(path).exists()


def packed_in(job: JobSettings, out: Folder | str | None, cache_dir: str | Path | None = None) -> Folder | None:
    """The folder into which images are packed: None, this machine's cache, if all nodes of the job's cluster see it,
    else one beside what the job writes.

    Raises:
        ValueError: the nodes do not share the cache, and the job writes nothing.
    """
    if starts_own_ray():
        return None
    with cluster(job), tempfile.NamedTemporaryFile(dir=cache_folder(cache_dir), prefix=".", suffix=".tmp") as file:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        questions = {node["NodeID"]: [file.name] for node in nodes}
        sees = asked_of(_exists, questions)
        # With a head alone that works for no job, the nodes that will pack are still to come.
        has_come = any(node["Resources"].get("CPU") for node in nodes)
        if has_come and sees == dict.fromkeys(questions, True):
            return None
    if out is None:
        raise ValueError(
            f"images of the data must be packed, and {cache_folder(cache_dir)} is not a folder that all nodes share; "
            "`glsd pack` the data into a folder that all nodes reach, or set GLSD_CACHE to one on every node"
        )
    folder = out if isinstance(out, Folder) else Folder(out)
    if not folder.is_local and not is_remote(folder.out):
        raise ValueError(f"{folder.out} is in a store that no URI names, so nothing can be packed beside it")
    return folder.beside(PACKED)
