"""The pack job: any images into WebDataset tar shards, one Ray Data task a shard.

A shard holds the images as they are, decodable or not, in the order of the index: KEY.jpg with the encoded bytes and
KEY.cls with the class id, KEY being the image_id; `classes.json` holds the names of the classes, unless they are
numbers. An index of the shards has the image_ids, labels and classes of the source's, and equal sources make equal
bytes. `pack.json`, written first, names every shard with its size: a shard of that size is complete and is not written
again, and an index of the folder is refused until all are.
"""

import io
import json
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray

from glsd.config import DataConfig
from glsd.data.images import IMAGE_EXTENSIONS, UndecodableImage, extension
from glsd.data.index import Index, build_index
from glsd.data.sources import CLASS_NAMES, PACK_PLAN
from glsd.storage.cache import use
from glsd.storage.folder import Folder
from ray_jobs.cluster import check_resources, cluster
from ray_jobs.settings import JobSettings
from ray_jobs.stream import Files, place_files, share_files

SHARD_BYTES = 256 * 2**20
_READ_AT_ONCE = 64
"""Images that a task reads side by side; besides these it keeps one shard."""
_SHOWN_LATE_S = 10.0
"""How long a network disk may take to show what other nodes wrote."""


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


class Shard(NamedTuple):
    """A shard of the plan: images [first, last) of the index, and the size of their tar in bytes."""

    name: str
    first: int
    last: int
    num_bytes: int


def pack(
    source: str | Path | Sequence[str | Path],
    out: str | Folder,
    config: DataConfig = DataConfig(),  # noqa: B008 (frozen)
    shard_bytes: int = SHARD_BYTES,
    on_progress: Callable[[str], None] = lambda _: None,
    cache_dir: str | Path | None = None,
) -> Packed:
    """Write all images of the sources to WebDataset shards, every image once; the same call goes on after a kill.

    Args:
        source: folders, lists, tars or Parquet files, as `build_index` takes them.
        out: a new or empty folder, local or a URI that all workers reach.
        config: names of columns; a regime is chosen in training, not here.
        shard_bytes: a shard holds no more than this, unless a single image does.
        on_progress: told in words what goes on.
        cache_dir: where the index is kept; by default the user's cache folder.

    Raises:
        ValueError: the data, the folder or the cluster do not fit, or shards are not there in the end; the message says
            what to do.
    """
    if shard_bytes < 1:
        raise ValueError(f"shards of {shard_bytes} bytes hold nothing; 256 MiB is a good size")
    if config.images_per_class is not None or config.fraction is not None:
        raise ValueError(
            "pack takes all images; leave out data.images_per_class and data.fraction and set them in training"
        )
    folder = out if isinstance(out, Folder) else Folder(out)
    folder.check_apart(source)
    on_progress("indexing images")
    index = build_index(source, config, cache_dir, lambda count: on_progress(f"indexing images: {count:,} so far"))
    for path in (index.path, *map(Path, index.packed)):
        use(path)
    shards = plan_shards(_lengths(index), _class_ids(index), shard_bytes)
    _claim(folder, index, shards)
    missing = _missing(shards, folder)
    num_written = len(index) - sum(shard.last - shard.first for shard in missing)
    on_progress(f"packing {num_written:,}/{len(index):,} images")
    if missing:
        settings = JobSettings(gpu=False)
        with cluster(settings):
            check_resources(settings, index.packed)
            for written in _written(missing, index, folder):
                num_written += written
                on_progress(f"packing {num_written:,}/{len(index):,} images")
    assert num_written == len(index), f"{num_written} images were packed, not {len(index)}"
    end = time.monotonic() + _SHOWN_LATE_S
    while (lost := _missing(shards, folder)) and time.monotonic() < end:
        time.sleep(1.0)
    if lost:
        raise ValueError(
            f"{len(lost)} of {len(shards)} shards were written and are not in {folder.out}, such as {lost[0].name}; "
            "name a folder that all nodes share, or a URI"
        )
    return Packed(
        folder.out, len(index), len(shards), sum(shard.num_bytes for shard in shards), len(shards) - len(missing)
    )


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
    borders = [0]
    while borders[-1] < len(sizes):
        before = ends[borders[-1] - 1] if borders[-1] else 0
        fitting = int(np.searchsorted(ends, before + _whole_records(shard_bytes) - tarfile.BLOCKSIZE * 2, side="right"))
        borders.append(max(fitting, borders[-1] + 1))
    return [
        Shard(f"{number:06d}.tar", first, last, _tar_bytes(int(sizes[first:last].sum())))
        for number, (first, last) in enumerate(pairwise(borders))
    ]


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


def _whole_records(num_bytes: int) -> int:
    return num_bytes // tarfile.RECORDSIZE * tarfile.RECORDSIZE


def _lengths(index: Index) -> NDArray[np.int64]:
    """The column of the index's file; asking for one place at a time takes a minute for a few million images."""
    with pa.memory_map(str(index.path)) as file:
        lengths: NDArray[np.int64] = pa.ipc.open_file(file).read_all()["length"].to_numpy().copy()
    return lengths


def _claim(folder: Folder, index: Index, shards: list[Shard]) -> None:
    """Write the plan to a new folder, or check that the folder is of the same plan."""
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
    saved = json.loads(manifest)
    if not index.has_digest(saved["digest"]):
        raise ValueError(
            f"{folder.out} holds shards of other data ({saved['images']:,} images, now {len(index):,}), "
            "or the files have changed since; name a new or an empty folder"
        )
    if saved != plan | {"digest": saved["digest"]}:
        raise ValueError(
            f"{folder.out} holds shards of another size ({len(saved['shards'])} shards, now {len(shards)}); "
            "name a new or an empty folder, or the size of before"
        )


def _missing(shards: list[Shard], folder: Folder) -> list[Shard]:
    """The shards that are not there in their size."""
    sizes = folder.sizes()
    return [shard for shard in shards if sizes.get(shard.name) != shard.num_bytes]


def _written(shards: list[Shard], index: Index, folder: Folder) -> Iterator[int]:
    """Write shards on the cluster; gives the number of images of each as it is done."""
    rows, files = [shard._asdict() for shard in shards], share_files([index])
    write = partial(_write_shards, index=index, files=files, folder=folder)
    tasks = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        write, batch_size=None, batch_format="numpy", num_cpus=1
    )
    for batch in tasks.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        for num_images, failure in zip(batch["images"].tolist(), batch["failure"].tolist(), strict=True):
            if failure:
                raise ValueError(failure)
            yield num_images


def _write_shards(
    rows: Mapping[str, NDArray[Any]], index: Index, files: Files, folder: Folder
) -> dict[str, NDArray[Any]]:
    """A task: the shards of its rows, normally one.

    Of an exception Ray Data brings home a traceback and no message, so what a user can mend travels as a row.
    """
    num_images, failures = [], []
    for fields in zip(*(rows[field].tolist() for field in Shard._fields), strict=True):
        shard = Shard(*fields)
        try:
            place_files(files)
            _write_shard(shard, index, folder)
            failures.append("")
        except (ValueError, OSError) as error:
            failures.append(f"{shard.name} was not written: {error}")
        num_images.append(shard.last - shard.first)
    return {"images": np.array(num_images), "failure": np.array(failures)}


def _write_shard(shard: Shard, index: Index, folder: Folder) -> None:
    data = _tar(index, range(shard.first, shard.last))
    assert len(data) == shard.num_bytes, f"{shard.name} has {len(data)} bytes, not {shard.num_bytes}"
    folder.write(shard.name, data)


def _tar(index: Index, image_ids: range) -> memoryview:
    content = io.BytesIO()
    class_ids = _class_ids(index)
    with (
        tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ThreadPoolExecutor(8) as readers,
    ):
        for start in range(0, len(image_ids), _READ_AT_ONCE):
            ids = image_ids[start : start + _READ_AT_ONCE]
            for image_id, data in zip(ids, readers.map(index.read, ids), strict=True):
                if class_ids is not None:
                    _add(tar, f"{image_id:09d}.cls", str(class_ids[image_id]).encode())
                _add(tar, f"{image_id:09d}{_suffix(index, image_id, data)}", data)
    return content.getbuffer()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # of time, user and group 0: the same bytes on every machine
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _suffix(index: Index, image_id: int, data: bytes) -> str:
    """What the content is; where that cannot be told, what the file's name says, so that it stays an image."""
    try:
        return extension(data)
    except UndecodableImage:
        place = index.place(image_id)
        named = PurePosixPath(place.member or place.uri).suffix.lower()
        return named if named in IMAGE_EXTENSIONS else ".jpg"


def _json(content: Any) -> bytes:
    return (json.dumps(content) + "\n").encode()
