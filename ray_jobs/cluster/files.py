"""Contents of files for all nodes of a cluster."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import ray

from glsd.data.index import Index
from glsd.storage.replacing import alone, replace_file

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
