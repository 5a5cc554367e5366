"""Packs: an index's images as WebDataset tars of nearly equal size, planned and written shard by shard."""

import io
import json
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glsd.data.index import Index
from glsd.data.labels import CLASS_NAMES
from glsd.data.sources import PACK_PLAN
from glsd.data.tars import image_suffix, write_tar
from glsd.record import parsed_json
from glsd.storage.folder import Folder

_READ_AT_ONCE = 64
"""Images that a task reads side by side; besides these it keeps one shard."""


class Shard(NamedTuple):
    """A shard of the plan: images [first, last) of the index, and the size of their tar in bytes."""

    name: str
    first: int
    last: int
    num_bytes: int


def plan_shards(lengths: NDArray[np.int64], class_ids: NDArray[np.int64] | None, shard_bytes: int) -> list[Shard]:
    """Which images go into which shard: consecutive ones, as many as fit into `shard_bytes`, and at least one.

    Args:
        lengths: size of each image's encoded bytes, (N,).
        class_ids: what is written for each image, (N,), or None.
        shard_bytes: largest size of a shard.
    """
    sizes = _in_tar(lengths)
    if class_ids is not None:
        sizes = sizes + _in_tar(np.char.str_len(class_ids.astype(str)))
    ends = np.cumsum(sizes)
    usable = shard_bytes - shard_bytes % tarfile.RECORDSIZE - 2 * tarfile.BLOCKSIZE
    borders = [0]
    while borders[-1] < len(sizes):
        before = ends[borders[-1] - 1] if borders[-1] else 0
        fitting = int(np.searchsorted(ends, before + usable, side="right"))
        borders.append(max(fitting, borders[-1] + 1))
    return [
        Shard(f"{number:06d}.tar", first, last, _tar_bytes(int(sizes[first:last].sum())))
        for number, (first, last) in enumerate(pairwise(borders))
    ]


def index_shards(index: Index, shard_bytes: int) -> list[Shard]:
    """The plan for an index's images, see `plan_shards`."""
    return plan_shards(index.lengths, _class_ids(index), shard_bytes)


def _class_ids(index: Index) -> NDArray[np.int64] | None:
    """The number of each image's class: the data's own, where they have numbers."""
    if index.labels is None or index.class_ids is None:
        return index.labels
    return np.array(index.class_ids)[index.labels]


def _in_tar(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Size of members in a tar: a header, and the content in whole blocks."""
    return tarfile.BLOCKSIZE * (1 + -(-lengths // tarfile.BLOCKSIZE))


def _tar_bytes(members: int) -> int:
    """Size of a tar: its members, two empty blocks, and what fills the last record."""
    return -(-(members + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def claim_pack(folder: Folder, index: Index, shards: list[Shard]) -> None:
    """Write the plan to a new folder, or check that the folder is of the same plan.

    Raises:
        ValueError: the folder holds something else, shards of other data or of another size.
    """
    plan: dict[str, Any] = {"digest": index.digest, "images": len(index), "shards": [list(shard) for shard in shards]}
    manifest = folder.read(PACK_PLAN)
    if manifest is None:
        foreign = [name for name in folder.sizes() if name != CLASS_NAMES]
        if foreign:
            raise ValueError(f"{folder.out} holds {foreign[0]} but no {PACK_PLAN}; name a new or an empty folder")
        if index.classes is not None and index.class_ids is None:
            folder.write(CLASS_NAMES, _json(index.classes))
        folder.write(PACK_PLAN, _json(plan))
        return
    saved = parsed_json(manifest, folder.uri(PACK_PLAN))
    if not index.has_digest(saved["digest"]):
        raise ValueError(
            f"{folder.out} holds shards of other data ({saved['images']:,} images, now {len(index):,}), "
            "or the files have changed since; name a new or an empty folder"
        )
    if saved != plan | {"digest": saved["digest"]}:
        raise ValueError(
            f"{folder.out} holds shards of another size ({len(saved['shards'])} shards, now {len(shards)}); "
            "name a new or an empty folder, or use the size that it was begun with"
        )


def missing_shards(shards: list[Shard], folder: Folder) -> list[Shard]:
    """The shards that are not there in their size."""
    sizes = folder.sizes()
    return [shard for shard in shards if sizes.get(shard.name) != shard.num_bytes]


def write_shard(shard: Shard, index: Index, folder: Folder) -> None:
    """Read the images of a shard and write their tar."""
    content = io.BytesIO()
    write_tar(content, _members(index, range(shard.first, shard.last)))
    data = content.getbuffer()
    assert len(data) == shard.num_bytes, f"{shard.name} has {len(data)} bytes, not {shard.num_bytes}"
    folder.write(shard.name, data)


def _members(index: Index, image_ids: range) -> Iterator[tuple[str, bytes]]:
    class_ids = _class_ids(index)
    with ThreadPoolExecutor(8) as readers:
        for start in range(0, len(image_ids), _READ_AT_ONCE):
            ids = image_ids[start : start + _READ_AT_ONCE]
            for image_id, data in zip(ids, readers.map(index.read, ids), strict=True):
                if class_ids is not None:
                    yield f"{image_id:09d}.cls", str(class_ids[image_id]).encode()
                place = index.place(image_id)
                yield f"{image_id:09d}{image_suffix(data, place.member or place.uri)}", data


def _json(content: Any) -> bytes:
    return (json.dumps(content) + "\n").encode()
