"""The stream: units of a training or of a probe, made by Ray Data's CPU tasks, as one execution over all epochs.

A row of `range` is a unit, so the stream is a pure function of the step: a resume starts `range` later, and any number
of workers receives the same units. Blocks of equal size and `preserve_order` are what makes rank r of W get the units
i * W + r, see `stream_options`.

Ray Train's controller and Ray Data's coordinators import this module, one after the other, before the first unit comes.
So torch, which the tasks alone need, is imported by the tasks.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import cv2
import numpy as np
import ray
import ray.data
from ray.data import Dataset, ExecutionOptions

from glsd.config import Config, DataConfig, LinearConfig
from glsd.data.images import UndecodableImage, decode, header_size
from glsd.data.index import Index
from glsd.data.order import Order
from glsd.runs.checkpoints import checkpoints
from glsd.storage.replacing import alone, replace_file

MAX_REPLACEMENTS = 100
"""Undecodable images in a row after which the data, and not an image, is at fault."""
MAX_UNIT_BYTES = 64 * 2**20
"""Ray Data splits blocks above 1.5 * 128 MiB without a word, and the order of the units would be lost."""

Files = dict[str, "ray.ObjectRef[bytes]"]
"""Contents of files by their path: one object a node, however many tasks need them."""


class Source(Protocol):
    """What a task needs to make any unit; small, because every task reads it."""

    @property
    def files(self) -> Files:
        """The indexes' files, for nodes that lack them."""

    @property
    def num_units(self) -> int:
        """Units of all epochs."""

    def unit(self, k: int) -> dict[str, np.ndarray]:
        """Unit k: arrays of one row for each of its images.

        Raises:
            ValueError: images cannot be used.
            OSError: images cannot be read.
        """

    def blank(self, k: int) -> dict[str, np.ndarray]:
        """Arrays of the shapes of unit k."""


class EncodedImage(NamedTuple):
    """An image of a unit as it was read."""

    member: int
    """Its number within the regime."""
    image_id: int
    """Its row of the full index."""
    data: bytes


class DecodedImage(NamedTuple):
    """An image of a unit, or the one that stands in for it."""

    member: int
    image_id: int
    pixels: np.ndarray
    skips: list[tuple[int, str]]
    """(image_id, reason) of each undecodable image that it stands in for."""


@dataclass(frozen=True)
class UnitReader:
    """Reads and decodes the images of any unit, whatever is made of them then."""

    order: Order
    index: Index
    image_ids: "ray.ObjectRef[np.ndarray] | None"
    """The regime's images in the object store; None is all."""
    limits: DataConfig

    def read(self, k: int) -> tuple[int, list[EncodedImage]]:
        """The epoch of unit k, and its images, which are read together: latency is shared.

        Raises:
            OSError: an image cannot be read.
        """
        epoch, members = self.order.unit(k)
        image_ids = self._ids(members).tolist()
        with ThreadPoolExecutor(8) as readers:
            contents = list(readers.map(self.index.read, image_ids))
        return epoch, list(map(EncodedImage, members.tolist(), image_ids, contents))

    def decode(self, epoch: int, encoded: EncodedImage) -> DecodedImage:
        """The image, or the first decodable one of its keyed replacements.

        Raises:
            ValueError: image after image cannot be decoded.
            OSError: a replacement cannot be read.
        """
        (member, image_id, data), skipped = encoded, list[tuple[int, str]]()
        for attempt in range(MAX_REPLACEMENTS):
            try:
                pixels = decode(data, self.limits.max_pixels, self.limits.value_range)
                return DecodedImage(member, image_id, pixels, skipped)
            except UndecodableImage as error:
                skipped.append((image_id, str(error)))
            member = self.order.replacement(epoch, encoded.member, attempt)
            image_id = int(self._ids(np.array([member]))[0])
            data = self.index.read(image_id)
        reasons = "; ".join(f"{self.index.uri(image_id)}: {reason}" for image_id, reason in skipped[:3])
        raise ValueError(f"{MAX_REPLACEMENTS} images in a row could not be decoded, such as {reasons}")

    def _ids(self, members: np.ndarray) -> np.ndarray:
        """Rows of the full index, which name an image alike in every regime."""
        if self.image_ids is None:
            return members
        regime: np.ndarray = ray.get(self.image_ids)
        chosen: np.ndarray = regime[members]
        return chosen


@dataclass(frozen=True)
class UnitSource:
    """The units of a training: m images as crops with their geometry."""

    config: Config
    index: Index
    files: Files
    """The index's file, for nodes that lack it."""
    image_ids: "ray.ObjectRef[np.ndarray] | None"
    """The regime's images in the object store; None is all."""
    num_images: int
    photometrics: Literal["worker", "device"]

    @cached_property
    def order(self) -> Order:
        """Which images make up which unit."""
        return Order(self.config.seed, self.num_images, self.config.optim.batch_size, self.config.data.unit_size)

    @property
    def num_units(self) -> int:
        """Units of all epochs."""
        return self.config.optim.epochs * self.order.units_per_epoch

    def unit(self, k: int) -> dict[str, np.ndarray]:
        """Unit k: m images read, decoded and cropped, the undecodable ones replaced.

        Returns:
            The arrays of `glsd.training.Unit`, and `skips` (m,): a JSON list of [image_id, reason] for each image.
        """
        from glsd.augment.views import ViewBatch

        reader = UnitReader(self.order, self.index, self.image_ids, self.config.data)
        epoch, unit = reader.read(k)
        scheduled = np.array([encoded.image_id for encoded in unit])
        sizes = np.array([header_size(encoded.data) for encoded in unit])
        views = ViewBatch(self.config.augment, self.config.seed, epoch, scheduled, sizes, self.photometrics)
        image_ids, skips = list[int](), list[str]()
        for row, encoded in enumerate(unit):
            image = reader.decode(epoch, encoded)
            views.crop(row, image.image_id, image.pixels)
            image_ids.append(image.image_id)
            skips.append(json.dumps(image.skips))
            del image  # or its pixels would be kept while the next one's are decoded
        return self._columns(k, image_ids, skips, views.arrays())

    def blank(self, k: int) -> dict[str, np.ndarray]:
        """Arrays of the shapes of unit k."""
        from glsd.augment.views import multicrop_batch

        size, augment = self.config.data.unit_size, self.config.augment
        images, ids = [np.zeros((8, 8, 3), np.uint8)] * size, np.zeros(size, np.int64)
        crops = multicrop_batch(images, augment, 0, 0, ids, self.photometrics)
        return self._columns(k, ids.tolist(), ["[]"] * size, crops)

    def _columns(
        self, k: int, image_ids: list[int], skips: list[str], crops: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """What travels; photometric parameters only where they are still needed."""
        travelling = {key: value for key, value in crops.items() if key != "pho" or self.photometrics == "device"}
        return {
            "unit": np.full(len(image_ids), k),
            "image_id": np.array(image_ids),
            "skips": np.array(skips),
            **travelling,
        }


@dataclass(frozen=True)
class LinearSource:
    """The units of a probe: m random crops of training images with their labels."""

    config: LinearConfig
    limits: DataConfig
    """How images are decoded."""
    crop: int
    unit_size: int
    index: Index
    files: Files
    image_ids: "ray.ObjectRef[np.ndarray]"
    """The training images in the object store, and their labels in the same order."""
    labels: "ray.ObjectRef[np.ndarray]"
    num_images: int

    @cached_property
    def order(self) -> Order:
        """Which images make up which unit."""
        return Order(self.config.seed, self.num_images, self.config.batch_size, self.unit_size)

    @property
    def num_units(self) -> int:
        """Units of all epochs."""
        return self.config.epochs * self.order.units_per_epoch

    @property
    def num_steps(self) -> int:
        """Steps of all epochs."""
        return self.config.epochs * self.order.steps_per_epoch

    def unit(self, k: int) -> dict[str, np.ndarray]:
        """`unit` (m,), `crops` (m, S, S, 3) uint8 and `label` (m,) of unit k; an image that stands in for an
        undecodable one brings its own label.
        """
        from glsd.evaluation.linear import linear_crop

        reader = UnitReader(self.order, self.index, self.image_ids, self.limits)
        epoch, unit = reader.read(k)
        members, crops = list[int](), list[np.ndarray]()
        for encoded in unit:
            image = reader.decode(epoch, encoded)
            members.append(image.member)
            crops.append(linear_crop(image.pixels, self.crop, self.config, epoch, image.image_id))
            del image  # or its pixels would be kept while the next one's are decoded
        labels: np.ndarray = ray.get(self.labels)
        return {"unit": np.full(len(crops), k), "crops": np.stack(crops), "label": labels[members]}

    def blank(self, k: int) -> dict[str, np.ndarray]:
        """Arrays of the shapes of unit k."""
        crops = np.zeros((self.unit_size, self.crop, self.crop, 3), np.uint8)
        return {"unit": np.full(self.unit_size, k), "crops": crops, "label": np.zeros(self.unit_size, np.int64)}


def share_files(indexes: Sequence[Index]) -> Files:
    """The indexes' files in the object store."""
    return {str(index.path): ray.put(index.path.read_bytes()) for index in indexes}


def place_files(files: Files) -> None:
    """Write those that this node lacks, one process for all; an index's path names its content, so one that is there is
    the same.
    """
    for path, content in ((Path(name), content) for name, content in files.items()):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with alone(path.with_suffix(".lock")):
                if not path.exists():  # it was not, before others held the lock
                    replace_file(path, ray.get(content))


def stream(source: Source, start_unit: int) -> Dataset:
    """All units from `start_unit` to the end of the last epoch, one block each, in order."""
    num_units = source.num_units - start_unit
    # About a thousand units a read task: many more tasks delay the first batch of a long run by most of a minute.
    units = ray.data.range(num_units, override_num_blocks=max(1, num_units // 1000))
    units.context.execution_no_progress_timeout_s = -1  # k-NN or an upload may hold the training up for long
    return units.repartition(target_num_rows_per_block=1).map_batches(
        partial(_make_unit, source=ray.put(source), first=start_unit), batch_size=None, batch_format="numpy", num_cpus=1
    )


def remaining(source: Source, units_per_step: int, run: str) -> Dataset:
    """The units after the newest checkpoint of a run; Ray Train asks anew whenever it starts the workers."""
    return stream(source, max(checkpoints(run), default=0) * units_per_step)


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


def _make_unit(row: dict[str, np.ndarray], source: "ray.ObjectRef[Source]", first: int) -> dict[str, Any]:
    import torch

    # A task has one core; libraries that start threads of their own would only fight for it.
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    k, failure = first + int(row["id"][0]), ""
    made_by = ray.get(source)
    try:
        place_files(made_by.files)
        arrays = made_by.unit(k)
    except (ValueError, OSError) as error:
        # Ray Data keeps the text of an exception only within a traceback, so what a user can mend travels as a row.
        arrays, failure = made_by.blank(k), str(error)
    return {**arrays, "failure": np.full(len(arrays["unit"]), failure)}
