"""The stream: training units made by Ray Data's CPU tasks, as one execution over all epochs.

A row of `range` is a unit, so the stream is a pure function of the step: a resume starts `range` later, and any number
of workers receives the same units. Blocks of equal size and `preserve_order` are what makes rank r of W get the units
i * W + r, see `stream_options`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import ray
import ray.data
import torch
from ray.data import Dataset, ExecutionOptions

from glsd.augment import multicrop_batch
from glsd.config import Config
from glsd.data import Index, Order, UndecodableImage, decode
from glsd.data.filesystems import replace_file

MAX_REPLACEMENTS = 100
"""Undecodable images in a row after which the data, and not an image, is at fault."""
MAX_UNIT_BYTES = 64 * 2**20
"""Ray Data splits blocks above 1.5 * 128 MiB without a word, and the order of the units would be lost."""


@dataclass(frozen=True)
class UnitSource:
    """What a task needs to make any unit; small, because it is part of every task's closure."""

    config: Config
    index: Index
    files: "Files"
    """The index's file, for nodes that lack it."""
    image_ids: "ray.ObjectRef[np.ndarray] | None"
    """The regime's images in the object store; None is all."""
    num_images: int
    photometrics: Literal["worker", "device"]

    @cached_property
    def order(self) -> Order:
        """Which images make up which unit."""
        return Order(self.config.seed, self.num_images, self.config.optim.batch_size, self.config.data.unit_size)

    def unit(self, k: int) -> dict[str, np.ndarray]:
        """Unit k: m images read, decoded and cropped, the undecodable ones replaced.

        Returns:
            The arrays of `glsd.training.Unit`, and `skips` (m,): a JSON list of [image_id, reason] for each image.
        """
        epoch, members = self.order.unit(k)
        with ThreadPoolExecutor(8) as readers:
            encoded = list(readers.map(self.index.read, self._ids(members).tolist()))
        image_ids, images, skips = [], [], []
        for member, data in zip(members.tolist(), encoded, strict=True):
            image_id, image, skipped = self._decoded(epoch, member, data)
            image_ids.append(image_id)
            images.append(image)
            skips.append(json.dumps(skipped))
        ids = np.array(image_ids)
        crops = multicrop_batch(images, self.config.augment, self.config.seed, epoch, ids, self.photometrics)
        return self.arrays(k, ids, skips, crops)

    def arrays(self, k: int, ids: np.ndarray, skips: list[str], crops: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The columns that travel; photometric parameters only where they are still needed."""
        travelling = {key: value for key, value in crops.items() if key != "pho" or self.photometrics == "device"}
        return {"unit": np.full(len(ids), k), "image_id": ids, "skips": np.array(skips), **travelling}

    def _decoded(self, epoch: int, member: int, data: bytes) -> tuple[int, np.ndarray, list[tuple[int, str]]]:
        """The regime's image of this number, or the first decodable one of its keyed replacements."""
        limits, skipped = self.config.data, list[tuple[int, str]]()
        image_id = self._id(member)
        for attempt in range(MAX_REPLACEMENTS):
            try:
                return image_id, decode(data, limits.max_pixels, limits.value_range), skipped
            except UndecodableImage as error:
                skipped.append((image_id, str(error)))
            image_id = self._id(self.order.replacement(epoch, member, attempt))
            data = self.index.read(image_id)
        reasons = "; ".join(f"{self.index.uri(image_id)}: {reason}" for image_id, reason in skipped[:3])
        raise ValueError(f"{MAX_REPLACEMENTS} images in a row could not be decoded, such as {reasons}")

    def _id(self, member: int) -> int:
        return int(self._ids(np.array([member]))[0])

    def _ids(self, members: np.ndarray) -> np.ndarray:
        """Rows of the full index, which name an image alike in every regime."""
        if self.image_ids is None:
            return members
        regime: np.ndarray = ray.get(self.image_ids)
        chosen: np.ndarray = regime[members]
        return chosen


Files = dict[str, "ray.ObjectRef[bytes]"]
"""Contents of files by their path: one object a node, however many tasks need them."""


def share_files(indexes: Sequence[Index]) -> Files:
    """The indexes' files in the object store."""
    return {str(index.path): ray.put(index.path.read_bytes()) for index in indexes}


def place_files(files: Files) -> None:
    """Write those that this node lacks; an index's path names its content, so one that is there is the same."""
    for path, content in files.items():
        if not Path(path).exists():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            replace_file(Path(path), ray.get(content))


def stream(source: UnitSource, start_unit: int) -> Dataset:
    """All units from `start_unit` to the end of the last epoch, one block each, in order."""
    config = source.config
    num_units = config.optim.epochs * source.order.steps_per_epoch * config.units_per_step - start_unit
    # About a thousand units a read task: many more tasks delay the first batch of a long run by most of a minute.
    units = ray.data.range(num_units, override_num_blocks=max(1, num_units // 1000))
    units.context.execution_no_progress_timeout_s = -1  # k-NN or an upload may hold the training up for long
    return units.repartition(target_num_rows_per_block=1).map_batches(
        partial(_make_unit, source=source, first=start_unit), batch_size=None, batch_format="numpy", num_cpus=1
    )


def stream_options() -> ExecutionOptions:
    """The options under which `streaming_split` deals the units out in order; Ray Train passes them on."""
    return ExecutionOptions(preserve_order=True)


def unit_bytes(config: Config) -> int:
    """Size of a unit's crops."""
    return config.data.unit_size * sum(num_views * size * size * 3 for size, num_views in config.augment.groups)


def received(units: Iterable[Mapping[str, np.ndarray]]) -> Iterator[Mapping[str, np.ndarray]]:
    """The units as they arrive at a training worker.

    Raises:
        ValueError: a unit could not be made; the message is the user's.
    """
    for unit in units:
        if failure := str(unit["failure"][0]):
            raise ValueError(failure)
        yield unit


def _make_unit(row: dict[str, np.ndarray], source: UnitSource, first: int) -> dict[str, Any]:
    # A task has one core; libraries that start threads of their own would only fight for it.
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    k, size = first + int(row["id"][0]), source.config.data.unit_size
    place_files(source.files)
    try:
        return {**source.unit(k), "failure": np.full(size, "")}
    except (ValueError, OSError) as error:
        # Ray Data keeps the text of an exception only within a traceback, so what a user can mend travels as a row.
        return {**_blank_unit(source, k), "failure": np.full(size, str(error))}


def _blank_unit(source: UnitSource, k: int) -> dict[str, Any]:
    size, augment = source.config.data.unit_size, source.config.augment
    blank = np.zeros((8, 8, 3), np.uint8)
    ids = np.zeros(size, np.int64)
    crops = multicrop_batch([blank] * size, augment, source.config.seed, 0, ids, source.photometrics)
    return source.arrays(k, ids, ["[]"] * size, crops)
