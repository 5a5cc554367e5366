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
from glsd.data import Index, Order, UndecodableImage, decode
from glsd.data.filesystems import replace_file
from glsd.training import checkpoints

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


class DecodedUnit(NamedTuple):
    """The m images of a unit, the undecodable ones replaced."""

    epoch: int
    members: np.ndarray
    """(m,) their numbers within the regime."""
    image_ids: np.ndarray
    """(m,) their rows of the full index."""
    images: list[np.ndarray]
    skips: list[list[tuple[int, str]]]
    """(image_id, reason) of each image that an image stands in for."""


@dataclass(frozen=True)
class UnitReader:
    """Reads and decodes the images of any unit, whatever is made of them then."""

    order: Order
    index: Index
    image_ids: "ray.ObjectRef[np.ndarray] | None"
    """The regime's images in the object store; None is all."""
    limits: DataConfig

    def read(self, k: int) -> DecodedUnit:
        """The images of unit k.

        Raises:
            ValueError: image after image cannot be decoded.
            OSError: an image cannot be read.
        """
        epoch, scheduled = self.order.unit(k)
        with ThreadPoolExecutor(8) as readers:
            encoded = list(readers.map(self.index.read, self._ids(scheduled).tolist()))
        found = [self._decoded(epoch, member, data) for member, data in zip(scheduled.tolist(), encoded, strict=True)]
        members = np.array([member for member, _, _ in found])
        images, skips = [image for _, image, _ in found], [skipped for _, _, skipped in found]
        return DecodedUnit(epoch, members, self._ids(members), images, skips)

    def _decoded(self, epoch: int, scheduled: int, data: bytes) -> tuple[int, np.ndarray, list[tuple[int, str]]]:
        """The regime's image of this number, or the first decodable one of its keyed replacements."""
        member, skipped = scheduled, list[tuple[int, str]]()
        for attempt in range(MAX_REPLACEMENTS):
            try:
                return member, decode(data, self.limits.max_pixels, self.limits.value_range), skipped
            except UndecodableImage as error:
                skipped.append((self._id(member), str(error)))
            member = self.order.replacement(epoch, scheduled, attempt)
            data = self.index.read(self._id(member))
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
        decoded = UnitReader(self.order, self.index, self.image_ids, self.config.data).read(k)
        skips = [json.dumps(skipped) for skipped in decoded.skips]
        return self._arrays(k, decoded.image_ids, skips, decoded.images, decoded.epoch)

    def blank(self, k: int) -> dict[str, np.ndarray]:
        """Arrays of the shapes of unit k."""
        size = self.config.data.unit_size
        return self._arrays(k, np.zeros(size, np.int64), ["[]"] * size, [np.zeros((8, 8, 3), np.uint8)] * size, 0)

    def _arrays(
        self, k: int, ids: np.ndarray, skips: list[str], images: list[np.ndarray], epoch: int
    ) -> dict[str, np.ndarray]:
        """The columns that travel; photometric parameters only where they are still needed."""
        from glsd.augment import multicrop_batch

        crops = multicrop_batch(images, self.config.augment, self.config.seed, epoch, ids, self.photometrics)
        travelling = {key: value for key, value in crops.items() if key != "pho" or self.photometrics == "device"}
        return {"unit": np.full(len(ids), k), "image_id": ids, "skips": np.array(skips), **travelling}


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
        from glsd.evaluation import linear_crop

        decoded = UnitReader(self.order, self.index, self.image_ids, self.limits).read(k)
        crops = [
            linear_crop(image, self.crop, self.config, decoded.epoch, image_id)
            for image, image_id in zip(decoded.images, decoded.image_ids.tolist(), strict=True)
        ]
        labels: np.ndarray = ray.get(self.labels)
        return {"unit": np.full(len(crops), k), "crops": np.stack(crops), "label": labels[decoded.members]}

    def blank(self, k: int) -> dict[str, np.ndarray]:
        """Arrays of the shapes of unit k."""
        crops = np.zeros((self.unit_size, self.crop, self.crop, 3), np.uint8)
        return {"unit": np.full(self.unit_size, k), "crops": crops, "label": np.zeros(self.unit_size, np.int64)}


def share_files(indexes: Sequence[Index]) -> Files:
    """The indexes' files in the object store."""
    return {str(index.path): ray.put(index.path.read_bytes()) for index in indexes}


def place_files(files: Files) -> None:
    """Write those that this node lacks; an index's path names its content, so one that is there is the same."""
    for path, content in files.items():
        if not Path(path).exists():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            replace_file(Path(path), ray.get(content))


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
    place_files(made_by.files)
    try:
        arrays = made_by.unit(k)
    except (ValueError, OSError) as error:
        # Ray Data keeps the text of an exception only within a traceback, so what a user can mend travels as a row.
        arrays, failure = made_by.blank(k), str(error)
    return {**arrays, "failure": np.full(len(arrays["unit"]), failure)}
