"""The stream's order: which images are seen when, as a pure function of (seed, step).

With B images per step there are `steps_per_epoch = N // B` steps, and position j < steps_per_epoch * B of epoch E is
image `permutation(seed, E)[j]`: every image comes at most once an epoch, and those left out differ from epoch to epoch.
The permutation is a keyed bijection that is evaluated only where asked, so a hundred million images cost nothing.
A unit is a run of `unit_size` positions, numbered over the whole training; who trains on it is decided elsewhere.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8


def permutation(key: str, size: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """The images at these positions of the permutation of [0, size) that the key names.

    A Feistel network permutes the smallest [0, 2^b) that holds [0, size); a value that falls outside is sent through
    again until it falls inside (cycle walking), which keeps the map a bijection and takes fewer than two passes on
    average, since 2^b < 2 * size.
    """
    assert ((positions >= 0) & (positions < size)).all()
    bits = max(2, (size - 1).bit_length())
    digest = hashlib.blake2b(key.encode(), digest_size=8 * _ROUNDS).digest()
    round_keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    images = positions.astype(np.uint64)
    outside = np.arange(images.size)
    while outside.size:
        images[outside] = _feistel(images[outside], bits, round_keys)
        outside = outside[images[outside] >= size]
    return images.astype(np.int64)


@dataclass(frozen=True)
class Order:
    """The order of `num_images` images, at least one batch, in steps of `batch_size` and units of `unit_size`."""

    seed: int
    num_images: int
    batch_size: int
    unit_size: int

    def __post_init__(self) -> None:
        if self.batch_size % self.unit_size:
            raise ValueError(f"data.unit_size {self.unit_size} does not divide optim.batch_size {self.batch_size}")
        if self.num_images < self.batch_size:
            fitting = self.num_images - self.num_images % self.unit_size or self.num_images
            unit = "" if fitting % self.unit_size == 0 else f" with data.unit_size {fitting}"
            advice = f"; use optim.batch_size {fitting}{unit}" if fitting else ""
            raise ValueError(f"{self.num_images} images do not fill a batch of {self.batch_size}{advice}")

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch, N // B."""
        return self.num_images // self.batch_size

    @property
    def units_per_step(self) -> int:
        """M = B / m."""
        return self.batch_size // self.unit_size

    @property
    def units_per_epoch(self) -> int:
        """Units in an epoch."""
        return self.steps_per_epoch * self.units_per_step

    def images(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Images in [0, num_images) at these positions of the epoch."""
        return permutation(f"order {self.seed} {epoch}", self.num_images, positions)

    def unit(self, unit: int) -> tuple[int, NDArray[np.int64]]:
        """(epoch, the m images in [0, num_images)) of a unit, counted from 0 over the whole training."""
        epoch, unit_of_epoch = divmod(unit, self.units_per_epoch)
        first = unit_of_epoch * self.unit_size
        return epoch, self.images(epoch, np.arange(first, first + self.unit_size))

    def replacement(self, epoch: int, image: int, attempt: int) -> int:
        """The image that stands in for an undecodable one, at the given attempt (from 0).

        Attempts 0, 1, ... up to num_images - 2 run through all other images in an order keyed by (seed, epoch, image),
        so a decodable image is found if there is one.

        Raises:
            ValueError: every other image has been tried.
        """
        if attempt >= self.num_images - 1:
            raise ValueError(f"none of the {self.num_images} images can be decoded")
        key = f"replacement {self.seed} {epoch} {image}"
        other = int(permutation(key, self.num_images - 1, np.array([attempt]))[0])
        return other + (other >= image)

    def left_out_warning(self) -> str | None:
        """What to say if over 10 % of the images are left out of each epoch, with a better batch size nearby."""
        left_out = self.num_images % self.batch_size
        if 10 * left_out <= self.num_images:
            return None
        # Units of one image always have one: the batch of all images leaves none out.
        batches = ((unit_size, self._better_batch(unit_size)) for unit_size in range(self.unit_size, 0, -1))
        unit_size, batch_size = next((unit_size, batch) for unit_size, batch in batches if batch is not None)
        unit = "" if unit_size == self.unit_size else f" with data.unit_size {unit_size}"
        return (
            f"a batch of {self.batch_size} leaves {left_out} of {self.num_images} images "
            f"({left_out / self.num_images:.0%}) out of each epoch; optim.batch_size {batch_size}{unit} leaves out "
            f"{self.num_images % batch_size}"
        )

    def _better_batch(self, unit_size: int) -> int | None:
        """The batch of whole units nearest to this one that leaves out 10 % or fewer, if there is one."""
        batches = range(unit_size, self.num_images + 1, unit_size)
        better = (batch for batch in batches if 10 * (self.num_images % batch) <= self.num_images)
        return min(better, key=lambda batch: (abs(batch - self.batch_size), batch), default=None)


def _feistel(values: NDArray[np.uint64], bits: int, round_keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of [0, 2^bits): the halves (left_bits, right_bits) swap places in every round."""
    left_bits, right_bits = bits // 2, bits - bits // 2
    for key in round_keys:
        left, right = values >> np.uint64(right_bits), values & np.uint64((1 << right_bits) - 1)
        left = left ^ (scrambled(right + key) & np.uint64((1 << left_bits) - 1))
        values = (right << np.uint64(left_bits)) | left
        left_bits, right_bits = right_bits, left_bits
    return values


def scrambled(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Stafford's 64-bit finaliser (variant 13), whose upper bits depend on all bits of its input."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
