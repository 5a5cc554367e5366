"""The units of a linear evaluation (Sec. 4.3), as those of a training a pure function of their number."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from glsd.config import DataConfig, LinearConfig
from glsd.data.index import Index
from glsd.data.order import Order
from glsd.data.units import EncodedUnit, UnitReader


@dataclass(frozen=True)
class LinearSource:
    """The units of a probe: m random crops of training images with their labels."""

    config: LinearConfig
    limits: DataConfig
    """How images are decoded."""
    crop: int
    unit_size: int
    index: Index
    image_ids: np.ndarray
    """The training images, rows of the index."""
    labels: np.ndarray
    """Their labels, in the same order."""
    cache_bytes: int = 0
    """What images of object stores may have on a node's own disk."""

    @cached_property
    def order(self) -> Order:
        """Which images make up which unit."""
        return Order(self.config.seed, len(self.image_ids), self.config.batch_size, self.unit_size)

    @property
    def num_units(self) -> int:
        """Units of all epochs."""
        return self.config.epochs * self.order.units_per_epoch

    @property
    def num_steps(self) -> int:
        """Steps of all epochs."""
        return self.config.epochs * self.order.steps_per_epoch

    @property
    def unit_bytes(self) -> int:
        """Size of a unit's crops."""
        return self.unit_size * self.crop * self.crop * 3

    def read(self, k: int) -> EncodedUnit:
        """Unit k: the bytes of m images."""
        return self._reader.read(k)

    def made(self, unit: EncodedUnit) -> dict[str, np.ndarray]:
        """`unit` (m,), `crops` (m, S, S, 3) uint8 and `label` (m,) of a unit; an image that stands in for an
        undecodable one brings its own label.
        """
        from glsd.evaluation.linear import linear_crop  # which imports torch; only tasks need it

        k, epoch, images = unit
        members, crops = list[int](), list[np.ndarray]()
        for encoded in images:
            image = self._reader.decode(epoch, encoded)
            members.append(image.member)
            crops.append(linear_crop(image.pixels, self.crop, self.config, epoch, image.image_id))
            del image  # or its pixels would be kept while the next one's are decoded
        return {"unit": np.full(len(crops), k), "crops": np.stack(crops), "label": self.labels[members]}

    def blank(self, k: int) -> dict[str, np.ndarray]:
        """Arrays of the shapes of unit k."""
        crops = np.zeros((self.unit_size, self.crop, self.crop, 3), np.uint8)
        return {"unit": np.full(self.unit_size, k), "crops": crops, "label": np.zeros(self.unit_size, np.int64)}

    @cached_property
    def _reader(self) -> UnitReader:
        return UnitReader(self.order, self.index, self.image_ids, self.limits, self.cache_bytes)
