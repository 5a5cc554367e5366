"""Representations of a data set by Ray Data: CPU tasks decode, actors embed, every image once, kept on disk.

What is computed is kept in the cache folder, in one store for each encoder (its weights and its preprocessing), data
set and kind of representation, with a row for every image of the data: other subsets of them and later calls find it
there until it is discarded, and a call that was killed resumes. Equal images have equal rows up to the rounding of
floats, whatever the number of workers.
"""

import copy
import hashlib
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import ray
import ray.data
import torch
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, ExecutionResources
from torch import Tensor

from glsd.data.index import Index
from glsd.data.splits import LabelledImages
from glsd.encoder.blocks import block_representations
from glsd.encoder.encoder import Encoder, model_digest
from glsd.storage.cache import ABOUT, cache_folder, remove, use
from glsd.storage.replacing import alone, replace_file
from ray_jobs.cluster.files import share_files
from ray_jobs.cluster.resources import check_resources
from ray_jobs.cluster.start import cluster
from ray_jobs.evaluation.decoding import read_chunk
from ray_jobs.evaluation.store import DONE, SKIPPED, Rows, Store
from ray_jobs.progress import ProgressLine
from ray_jobs.settings import JobSettings

_CHUNK_IMAGES = 64
_CHUNK_BYTES = 32 * 2**20
"""Most bytes of a chunk's crops, and of its representations: fewer images are a chunk where they are large."""
_FORMAT = 2


@dataclass(frozen=True)
class Selection:
    """Images of an index, by its rows, each at most once."""

    index: Index
    image_ids: NDArray[np.int64]

    @classmethod
    def all(cls, index: Index) -> Self:
        """The images of the whole index."""
        return cls(index, np.arange(len(index)))

    @classmethod
    def union(cls, *parts: "Images") -> Self:
        """The images that are in any of the parts, which are of one index."""
        assert all(part.index is parts[0].index for part in parts)
        return cls(parts[0].index, np.unique(np.concatenate([part.image_ids for part in parts])))


Images = Selection | LabelledImages


@dataclass(frozen=True)
class Features:
    """Representations of the images that could be decoded, n of those asked for, in the order in which they were."""

    image_ids: NDArray[np.int64]
    """(n,) rows of the index."""
    positions: NDArray[np.int64]
    """(n,) places among the images asked for: `labels[positions]` are the labels."""
    skipped: list[tuple[int, str]]
    """(image_id, reason) of each image asked for that could not be decoded."""
    stored: "np.memmap[Any, np.dtype[np.float32]]"
    """(N, D), the row of each image of the index; (N, 1 + H W, d) where dense, z̄ before z. Only `image_ids` count."""
    grid: tuple[int, int] | None
    """(H, W) of dense representations."""

    @cached_property
    def values(self) -> NDArray[np.float32]:
        """(n, D), or z (n, H, W, d) where dense, memory-mapped: `torch.from_numpy` takes it.

        What is written to it stays in memory. Rows that do not lie side by side in the store are copied into a file
        without a name, which goes with the array.
        """
        shape = (len(self.image_ids), *self.stored.shape[1:])
        first = int(self.image_ids[0])
        if np.array_equal(self.image_ids, np.arange(first, first + len(self.image_ids))):
            assert self.stored.filename is not None
            offset = self.stored.offset + first * self.stored[0].nbytes
            rows = np.memmap(self.stored.filename, np.float32, "c", offset, shape)
        else:
            with tempfile.TemporaryFile(dir=cache_folder()) as file:
                for _, part in self.parts():
                    file.write(part.data)
                file.flush()
                rows = np.memmap(file, np.float32, "c", shape=shape)
        return rows if self.grid is None else rows[:, 1:].reshape(len(rows), *self.grid, rows.shape[-1])

    def parts(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Consecutive `image_ids` and their rows as `stored` has them, some MiB at a time."""
        at_once = max(1, _CHUNK_BYTES // self.stored[0].nbytes)
        for start in range(0, len(self.image_ids), at_once):
            image_ids = self.image_ids[start : start + at_once]
            yield image_ids, self.stored[image_ids]


def extract(
    encoder: Encoder,
    images: Images,
    *,
    settings: JobSettings,
    line: ProgressLine,
    dense: bool = False,
    num_blocks: int = 1,
) -> Features:
    """Representations of images, computed now as far as the cache lacks them; Ray is started only for that.

    Args:
        encoder: the model.
        images: which images of which index.
        settings: `workers` actors, each on a GPU where the cluster has any. One that dies is started again however
            often: Ray Data knows no `max_failures`.
        line: of the progress.
        dense: z in place of z̄.
        num_blocks: 1 is z̄, n what `block_representations` makes of the last n blocks.

    Raises:
        ValueError: the backbone has no such representation or one that is not finite, no image can be decoded, files
            are gone or have changed since the index was made, or the cluster lacks what the job needs.
        OSError: images cannot be read, or the disk is full.
    """
    assert num_blocks == 1 or not dense
    embedding = _Embedding(encoder, dense, num_blocks)
    index, image_ids = images.index, images.image_ids
    with _stores([embedding], index) as stores:
        _complete(stores, images, settings, line)
        store = stores[embedding]
        state = store.state[image_ids]
        skipped = [(image_id, store.reasons[image_id]) for image_id in image_ids[state == SKIPPED].tolist()]
    if len(skipped) == len(image_ids):
        reasons = "; ".join(f"{index.uri(image_id)}: {reason}" for image_id, reason in skipped[:3])
        raise ValueError(f"none of the {len(skipped):,} images could be decoded, such as {reasons}")
    done = state == DONE
    stored = np.load(store.path, mmap_mode="r")
    grid = encoder.backbone.grid(embedding.crop) if dense else None
    return Features(image_ids[done], np.flatnonzero(done), skipped, stored, grid)


def precompute(encoders: Sequence[Encoder], images: Images, *, settings: JobSettings, line: ProgressLine) -> None:
    """Fill the cache with z̄ of the images for each encoder, decoding each image once.

    The encoders prepare images alike. An image that any of them lacks is embedded by all that lack images. The other
    arguments and the errors are those of `extract`; images that cannot be decoded raise none.
    """
    every = [_Embedding(encoder, dense=False, num_blocks=1) for encoder in encoders]
    assert len({embedding.preparation for embedding in every}) == 1, "encoders that prepare images in different ways"
    embeddings = []
    for embedding in {embedding.folder(images.index): embedding for embedding in every}.values():
        with _stores([embedding], images.index) as stores:
            if stores[embedding].lacks(images.image_ids).any():
                embeddings.append(embedding)
    # No lock is held of a store that lacks nothing: trials that share the untrained backbone would wait for each other.
    if embeddings:
        with _stores(embeddings, images.index) as stores:
            _complete(stores, images, settings, line)


def discard(encoder: Encoder, index: Index) -> None:
    """Delete the store of an encoder's z̄ of a data set, unless another process uses it."""
    remove(_Embedding(encoder, dense=False, num_blocks=1).folder(index))


@contextmanager
def _stores(embeddings: Sequence["_Embedding"], index: Index) -> Iterator[dict["_Embedding", Store]]:
    """The store of each of the embeddings, which differ, for only this process."""
    folders = {embedding: embedding.folder(index) for embedding in embeddings}
    with ExitStack() as held:
        for folder in sorted(folders.values()):  # in all processes, so that none waits for another in a circle
            use(folder)
            held.enter_context(alone(folder.with_suffix(".lock")))
        stores = {}
        for embedding, folder in folders.items():
            folder.mkdir(exist_ok=True)
            if not (folder / ABOUT).exists():
                about = {"about": f"{embedding.title} of {len(index):,} images of {', '.join(index.sources)}"}
                replace_file(folder / ABOUT, json.dumps(about).encode())
            stores[embedding] = held.enter_context(Store(folder, (len(index), *embedding.row_shape)))
        yield stores


def _complete(stores: dict["_Embedding", Store], images: Images, settings: JobSettings, line: ProgressLine) -> None:
    """Compute the rows of the images that a store lacks."""
    image_ids = images.image_ids
    lacking = np.array([store.lacks(image_ids) for store in stores.values()])  # (stores, images)
    stores = {embedding: store for (embedding, store), row in zip(stores.items(), lacking, strict=True) if row.any()}
    pending = image_ids[lacking.any(0)]
    num_done = len(image_ids) - len(pending)
    line.phase("embedding", f"{num_done:,} of {len(image_ids):,} images")
    if not stores:
        return
    embedded = np.zeros(len(images.index), bool)
    with cluster(settings):
        for chunk in _computed([*stores], images.index, pending, settings):
            assert not embedded[chunk[0].image_ids].any(), "an image was embedded twice"
            embedded[chunk[0].image_ids] = True
            for store, rows in zip(stores.values(), chunk, strict=True):
                store.add(rows.some(store.lacks(rows.image_ids)))
            num_done += len(chunk[0].image_ids)
            line.phase("embedding", f"{num_done:,} of {len(image_ids):,} images")
    assert num_done == len(image_ids), f"{num_done} images were embedded, not {len(image_ids)}"


@dataclass(frozen=True)
class _Embedding:
    """Crops to rows of the store."""

    encoder: Encoder
    dense: bool
    num_blocks: int

    @torch.no_grad()
    def __call__(self, crops: Tensor) -> Tensor:
        """(m, *row_shape) float32 of (m, crop, crop, 3) uint8, on the encoder's device."""
        if self.num_blocks > 1:
            images = self.encoder.normalize(crops.to(next(self.encoder.parameters()).device))
            return block_representations(self.encoder, images, self.num_blocks)
        z_bar, z = self.encoder.represent(crops)
        return torch.cat([z_bar[:, None], z.flatten(1, 2)], 1) if self.dense else z_bar

    @property
    def preparation(self) -> tuple[Any, ...]:
        """What an image's crop depends on."""
        config = self.encoder.config
        return config.evaluation.resize, config.evaluation.crop, config.data.max_pixels, config.data.value_range

    @property
    def title(self) -> str:
        """What it is, for people."""
        kind = "z" if self.dense else "z̄" if self.num_blocks == 1 else f"the last {self.num_blocks} blocks"
        return f"{kind} by {self.encoder.config.model.backbone} ({model_digest(self.encoder)[:8]})"

    @property
    def crop(self) -> int:
        """Side of a crop in pixels."""
        return self.encoder.config.evaluation.crop

    @cached_property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of a row, from a black image; refused where the backbone has no such representation."""
        self.encoder.backbone.check_crop_sizes([self.crop])
        return tuple(self(torch.zeros(1, self.crop, self.crop, 3, dtype=torch.uint8)).shape[1:])

    def folder(self, index: Index) -> Path:
        """Of the store."""
        limits = self.encoder.config.data
        facts = [_FORMAT, model_digest(self.encoder), self.dense, self.num_blocks]
        # Not the index's digest: a file that was changed and kept its size has other representations.
        facts += [index.key, limits.max_pixels, limits.value_range]
        return cache_folder() / f"features-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}"


def _computed(
    embeddings: Sequence[_Embedding], index: Index, image_ids: NDArray[np.int64], settings: JobSettings
) -> Iterator[list[Rows]]:
    """Each embedding's rows of the images, each image once, a chunk at a time in any order."""
    resources = check_resources(settings)
    row_bytes = sum(4 * math.prod(embedding.row_shape) for embedding in embeddings)
    image_bytes = max(3 * embeddings[0].crop ** 2, row_bytes)
    size = min(max(_CHUNK_BYTES // image_bytes, 1), _CHUNK_IMAGES)
    num_chunks = math.ceil(len(image_ids) / size)
    read = partial(
        read_chunk,
        config=embeddings[0].encoder.config,
        index=index,
        files=share_files([index]),
        image_ids=ray.put(image_ids),
        size=size,
    )
    on_cpu = [replace(embedding, encoder=copy.deepcopy(embedding.encoder).cpu()) for embedding in embeddings]
    # About a thousand chunks per read task of `range`, as the stream of the training has them.
    chunks = ray.data.range(num_chunks, override_num_blocks=max(1, num_chunks // 1000))
    rows = (
        chunks.repartition(target_num_rows_per_block=1)
        .map_batches(read, batch_size=None, batch_format="numpy", num_cpus=1)
        .map_batches(
            _Embedder,
            fn_constructor_args=(ray.put(on_cpu), resources.torch_threads),
            batch_size=None,
            batch_format="numpy",
            compute=ActorPoolStrategy(size=settings.num_workers),
            num_cpus=resources.per_worker["CPU"],
            num_gpus=resources.per_worker.get("GPU"),
        )
    )
    # Two chunks for each task and actor at once: without a limit, what is decoded ahead would fill the object store.
    num_at_once = ray.cluster_resources()["CPU"] + settings.num_workers
    most_ahead = 2 * _CHUNK_BYTES * num_at_once
    rows.context.execution_options.resource_limits = ExecutionResources(object_store_memory=most_ahead)
    for batch in rows.iter_batches(batch_size=None, batch_format="numpy"):
        if failure := str(batch["failure"][0]):
            raise ValueError(failure)
        image_id, reasons = np.asarray(batch["image_id"]), batch["reason"].tolist()
        chunk = [Rows(image_id, np.asarray(batch[f"values_{n}"]), reasons) for n in range(len(embeddings))]
        for embedding, of_one in zip(embeddings, chunk, strict=True):
            if not np.isfinite(of_one.values).all():
                raise ValueError(
                    f"{embedding.title} of images such as {index.uri(int(image_id[0]))} is not finite: the weights are "
                    "too large, or are not those of a trained backbone"
                )
        yield chunk


class _Embedder:
    """An actor: encoders on its device."""

    def __init__(self, embeddings: "ray.ObjectRef[list[_Embedding]]", torch_threads: int | None) -> None:
        if torch_threads is not None:
            torch.set_num_threads(torch_threads)
        torch.backends.cudnn.allow_tf32 = False  # convolutions have float32's precision then, as on a CPU
        self._embeddings: list[_Embedding] = ray.get(embeddings)
        for embedding in self._embeddings if ray.get_gpu_ids() else ():
            embedding.encoder.cuda()

    def __call__(self, chunk: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The chunk with representations in place of crops."""
        crops = torch.tensor(chunk.pop("crops"))  # a copy: what Ray gives may not be written to, and torch warns
        values = (embedding(crops).cpu().numpy() for embedding in self._embeddings)
        return chunk | {f"values_{n}": of_one for n, of_one in enumerate(values)}
