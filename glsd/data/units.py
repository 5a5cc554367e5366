"""Units of the stream: unit k, some images of a step, is a pure function of the settings, the data and k.

So a training resumes at any unit, and any worker, or a loop without Ray, can make any of them.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from glsd.config import Config, DataConfig
from glsd.data.image_cache import ImageCache
from glsd.data.images import UndecodableImage, decode, header_size
from glsd.data.index import Index
from glsd.data.order import Order
from glsd.storage.files import allow_requests

MAX_REPLACEMENTS = 100
"""Undecodable images in a row after which the data, and not an image, is at fault."""
_NUM_READERS = 32
MAX_UNIT_BYTES = 64 * 2**20
"""Of a unit's arrays, which a task makes, and a worker receives, as one piece."""


@runtime_checkable
class UnitMaker(Protocol):
    """What makes any unit."""

    @property
    def order(self) -> Order:
        """Which images make up which unit."""

    @property
    def num_units(self) -> int:
        """Units of all epochs."""

    @property
    def unit_bytes(self) -> int:
        """About the size of a unit's arrays."""

    def read(self, k: int) -> "EncodedUnit":
        """The bytes of unit k; a ValueError or OSError where they cannot be had."""

    def made(self, unit: "EncodedUnit") -> dict[str, np.ndarray]:
        """Arrays of one row for each image of a unit that was read; a ValueError or OSError as above."""

    def blank(self, k: int) -> dict[str, np.ndarray]:
        """Arrays of the shapes of unit k."""


class EncodedImage(NamedTuple):
    """An image of a unit as it was read: its number within the regime, its row of the full index, its bytes."""

    member: int
    image_id: int
    data: bytes


class EncodedUnit(NamedTuple):
    """Unit k as it was read."""

    k: int
    epoch: int
    images: list[EncodedImage]


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
    image_ids: np.ndarray | None
    """The regime's images, rows of the index; None is all."""
    limits: DataConfig
    cache_bytes: int = 0
    """What images of object stores may have on a node's own disk."""

    def read(self, k: int) -> EncodedUnit:
        """Unit k, all images at once: latency is shared."""
        epoch, members = self.order.unit(k)
        image_ids = self._ids(members).tolist()
        contents = list(_readers().map(self._read, image_ids))
        return EncodedUnit(k, epoch, list(map(EncodedImage, members.tolist(), image_ids, contents)))

    def decode(self, epoch: int, encoded: EncodedImage) -> DecodedImage:
        """The image, or the first decodable one of its keyed replacements; a ValueError after a hundred of them."""
        (member, image_id, data), skipped = encoded, list[tuple[int, str]]()
        for attempt in range(MAX_REPLACEMENTS):
            try:
                pixels = decode(data, self.limits.max_pixels, self.limits.value_range)
                return DecodedImage(member, image_id, pixels, skipped)
            except UndecodableImage as error:
                skipped.append((image_id, str(error)))
            member = self.order.replacement(epoch, encoded.member, attempt)
            image_id = int(self._ids(np.array([member]))[0])
            data = self._read(image_id)
        reasons = "; ".join(f"{self.index.uri(image_id)}: {reason}" for image_id, reason in skipped[:3])
        raise ValueError(f"{MAX_REPLACEMENTS} images in a row could not be decoded, such as {reasons}")

    @cached_property
    def _read(self) -> Callable[[int], bytes]:
        if not self.cache_bytes:
            return self.index.read
        return ImageCache(self.index, self.image_ids, self.cache_bytes).read

    def _ids(self, members: np.ndarray) -> np.ndarray:
        """Rows of the full index, which name an image alike in every regime."""
        return members if self.image_ids is None else self.image_ids[members]


@dataclass(frozen=True)
class UnitSource:
    """The units of a training: m images as crops with their geometry."""

    config: Config
    index: Index
    image_ids: np.ndarray | None
    """The regime's images, rows of the index; None is all."""
    photometrics: Literal["worker", "device"]
    cache_bytes: int = 0
    """What images of object stores may have on a node's own disk."""

    @property
    def num_images(self) -> int:
        """Images of the regime."""
        return len(self.index) if self.image_ids is None else len(self.image_ids)

    @cached_property
    def order(self) -> Order:
        """Which images make up which unit."""
        return Order(self.config.seed, self.num_images, self.config.optim.batch_size, self.config.data.unit_size)

    @property
    def num_units(self) -> int:
        """Units of all epochs."""
        return self.config.optim.epochs * self.order.units_per_epoch

    @property
    def unit_bytes(self) -> int:
        """Size of a unit's crops."""
        return unit_bytes(self.config)

    def read(self, k: int) -> EncodedUnit:
        """Unit k: the bytes of m images."""
        return self._reader.read(k)

    def made(self, unit: EncodedUnit) -> dict[str, np.ndarray]:
        """The images decoded and cropped, the undecodable ones replaced.

        Returns:
            The arrays of a training's `Unit`, and `skips` (m,), for each image a JSON list of [image_id, reason].
        """
        from glsd.augment.multicrop import ViewBatch

        k, epoch, images = unit
        scheduled = np.array([encoded.image_id for encoded in images])
        sizes = np.array([header_size(encoded.data) for encoded in images])
        views = ViewBatch(self.config.augment, self.config.seed, epoch, scheduled, sizes, self.photometrics)
        image_ids, skips = list[int](), list[str]()
        for row, encoded in enumerate(images):
            image = self._reader.decode(epoch, encoded)
            views.crop(row, image.image_id, image.pixels)
            image_ids.append(image.image_id)
            skips.append(json.dumps(image.skips))
            del image  # or its pixels would be kept while the next one's are decoded
        return self._columns(k, image_ids, skips, views.arrays())

    def blank(self, k: int) -> dict[str, np.ndarray]:
        """Arrays of the shapes of unit k."""
        from glsd.augment.multicrop import multicrop_batch

        size = self.config.data.unit_size
        images, ids = [np.zeros((8, 8, 3), np.uint8)] * size, np.zeros(size, np.int64)
        crops = multicrop_batch(images, self.config.augment, 0, 0, ids, self.photometrics)
        return self._columns(k, ids.tolist(), ["[]"] * size, crops)

    @cached_property
    def _reader(self) -> UnitReader:
        return UnitReader(self.order, self.index, self.image_ids, self.config.data, self.cache_bytes)

    def _columns(self, k: int, ids: list[int], skips: list[str], crops: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What travels; photometric parameters only where they are still needed."""
        if self.photometrics == "worker":
            crops = {key: value for key, value in crops.items() if key != "pho"}
        return {"unit": np.full(len(ids), k), "image_id": np.array(ids), "skips": np.array(skips), **crops}


def made_in_turn(maker: UnitMaker, numbers: Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of units, each of which is read while the one before is made; a ValueError or OSError in its place."""
    with ThreadPoolExecutor(1) as ahead:
        reading = ahead.submit(maker.read, numbers[0])
        for _, following in itertools.pairwise([*numbers, None]):
            unit = reading.result()
            if following is not None:
                reading = ahead.submit(maker.read, following)
            yield maker.made(unit)


@cache
def _readers() -> ThreadPoolExecutor:
    """Threads that read images for this process, enough of them to hide the latency of an object store."""
    allow_requests(_NUM_READERS)
    return ThreadPoolExecutor(_NUM_READERS)


def unit_bytes(config: Config) -> int:
    """Size of a unit's crops."""
    return config.data.unit_size * sum(num_views * size * size * 3 for size, num_views in config.augment.groups)
