"""The pack job: any images into WebDataset tar shards, one Ray Data task per shard.

A shard holds the images as they are, decodable or not, in the order of the index: KEY.jpg with the encoded bytes and
KEY.cls with the class id, KEY being the image_id; `classes.json` holds the names of the classes, unless they are
numbers. An index of the shards has the image_ids, labels and classes of the source's, and equal sources make equal
bytes. `pack.json`, written first, names every shard with its size: a shard of that size is complete and is not written
again, and an index of the folder is refused until all are.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from glsd.config import DataConfig
from glsd.data.conversion import SHOWN_LATE_S
from glsd.data.index import Index, build_index
from glsd.data.packs import Shard, claim_pack, index_shards, missing_shards, write_shard
from glsd.storage.folder import Folder
from ray_jobs.cluster.files import SharedFiles, packed_in, place_files, share_files
from ray_jobs.cluster.pieces import each_on, over_cluster
from ray_jobs.cluster.resources import check_resources
from ray_jobs.cluster.start import cluster
from ray_jobs.indexing import keep
from ray_jobs.packing_options import PackOptions
from ray_jobs.settings import JobSettings


class Packed(NamedTuple):
    """What `pack` has made."""

    out: str
    num_images: int
    num_shards: int
    num_bytes: int
    num_shards_kept: int
    """Shards that an earlier start had completed."""

    def __str__(self) -> str:
        kept = f", {self.num_shards_kept} of them from an earlier start" if self.num_shards_kept else ""
        size = f"{self.num_bytes / 2**20:,.1f} MiB"
        return f"{self.num_images:,} images in {self.num_shards:,} shards of {size} together{kept}: {self.out}"


def pack(
    source: str | Path | Sequence[str | Path],
    out: str | Folder,
    options: PackOptions = PackOptions(),
    on_progress: Callable[[str, str], None] = lambda *_: None,
    cache_dir: str | Path | None = None,
) -> Packed:
    """Write all images of the sources to WebDataset shards, every image once; make the same call again to resume.

    Args:
        source: folders, lists, tars or Parquet files, as `build_index` takes them.
        out: a new or empty folder, local or a URI that all workers reach.
        options: size of a shard, which only a single image may exceed, and names of columns.
        on_progress: told what is done, and how far it is.
        cache_dir: where the index is kept; by default the user's cache folder.

    Raises:
        ValueError: the data, the folder or the cluster do not fit, or shards are not there in the end; the message says
            what to do.
    """
    options.check()
    config = DataConfig(image_column=options.image_column, label_column=options.label_column)
    folder = out if isinstance(out, Folder) else Folder(out)
    folder.check_apart(source)
    on_progress("indexing", "images")
    settings = JobSettings(gpu=False)
    index = build_index(
        source,
        config,
        cache_dir,
        lambda count: on_progress("indexing", f"images: {count:,} so far"),
        each_on(settings),
        partial(packed_in, settings, folder, cache_dir),
    )
    keep(index)
    shards = index_shards(index, options.shard_mib * 2**20)
    claim_pack(folder, index, shards)
    missing = missing_shards(shards, folder)
    num_written = len(index) - sum(shard.last - shard.first for shard in missing)
    on_progress("packing", f"{num_written:,}/{len(index):,} images")
    if missing:
        with cluster(settings):
            check_resources(settings)
            for written in _written(missing, index, folder):
                num_written += written
                on_progress("packing", f"{num_written:,}/{len(index):,} images")
    assert num_written == len(index), f"{num_written} images were packed, not {len(index)}"
    if lost := _not_shown(shards, folder):
        raise ValueError(
            f"{len(lost)} of {len(shards)} shards were written and are not in {folder.out}, such as {lost[0].name}; "
            "name a folder that all nodes share, or a URI"
        )
    for packed in index.packed:
        if Path(packed).parent != index.path.parent:
            Folder(packed).delete()
    return Packed(
        folder.out, len(index), len(shards), sum(shard.num_bytes for shard in shards), len(shards) - len(missing)
    )


def _not_shown(shards: list[Shard], folder: Folder) -> list[Shard]:
    """The shards that a network disk does not show, however late."""
    end = time.monotonic() + SHOWN_LATE_S
    while (lost := missing_shards(shards, folder)) and time.monotonic() < end:
        time.sleep(1.0)
    return lost


def _written(shards: list[Shard], index: Index, folder: Folder) -> Iterator[int]:
    """Write shards on the cluster; yields the number of images of each when it is written."""
    write = partial(_write_shard, index=index, files=share_files([index]), folder=folder)
    for _, num_images in over_cluster(write, shards):
        yield num_images


def _write_shard(shard: Shard, index: Index, files: SharedFiles, folder: Folder) -> int:
    """Write a shard; the number of its images."""
    try:
        place_files(files)
        write_shard(shard, index, folder)
    except (ValueError, OSError) as error:
        raise ValueError(f"{shard.name} was not written: {error}") from error
    return shard.last - shard.first
