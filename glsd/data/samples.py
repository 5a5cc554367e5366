"""Some images of a data set, to be looked at: decodable ones, of equal shape, one of each class; and their values."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice

import numpy as np

from glsd.config import DataConfig
from glsd.data.images import UndecodableImage, decode, fitting_value_range
from glsd.data.index import Index

_NUM_SAMPLED = 16
"""Images of a data set whose values are looked at."""


def value_range_note(indexes: Sequence[Index | None], limits: DataConfig) -> str | None:
    """What a user should know of images such as those of 12 bits in files of 16, which would be nearly black.

    It is judged by some images from all over the data, and only where no `data.value_range` is set.
    """
    contents = (content for index in indexes if index is not None for content in _sampled(index))
    if limits.value_range is not None or (fitting := fitting_value_range(contents, limits.max_pixels)) is None:
        return None
    return (
        f"the images have more than 8 bits, but the values of those looked at lie within {list(fitting)}, at most a "
        f"quarter of their type's range, so a model hardly sees contrast in them. Pretrain with data.value_range "
        f"{list(fitting)}; an evaluation uses that of the model"
    )


def _sampled(index: Index) -> Iterator[bytes]:
    for image_id in np.linspace(0, len(index) - 1, min(len(index), _NUM_SAMPLED), dtype=np.int64).tolist():
        with suppress(OSError):  # whoever needs the image names it
            yield index.read(image_id)


def decodable(index: Index, image_ids: np.ndarray, limits: DataConfig) -> Iterator[tuple[int, np.ndarray]]:
    """(image_id, image) of those that can be decoded, in order."""
    for image_id in image_ids.tolist():
        with suppress(UndecodableImage):
            yield image_id, decode(index.read(image_id), limits.max_pixels, limits.value_range)


def some_decodable(
    index: Index, image_ids: np.ndarray, limits: DataConfig, seed: int, count: int
) -> list[tuple[int, np.ndarray]]:
    """(image_id, image) of some images, the same for the same seed."""
    return list(islice(decodable(index, np.random.default_rng(seed).permutation(image_ids), limits), count))


def alike(index: Index, image_ids: np.ndarray, limits: DataConfig, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of different images, of one class where there are classes; none where no class has two.

    Classes come in turn, until they give no pair.
    """
    groups = deque([image_ids])
    if index.labels is not None:
        labels = index.labels[image_ids]
        classes, counts = np.unique(labels, return_counts=True)
        shuffled = np.random.default_rng(0).permutation(classes[counts > 1])
        groups = deque(image_ids[labels == label] for label in shuffled)
    pairs = list[tuple[np.ndarray, np.ndarray]]()
    while groups and len(pairs) < count:
        group = groups.popleft()
        found = some_decodable(index, group, limits, len(pairs), 2)
        if len(found) == 2:
            pairs.append((found[0][1], found[1][1]))
            groups.append(group)
    return pairs


def one_each(labels: np.ndarray, count: int) -> np.ndarray:
    """Places of the first image of each class in turn, then of the second, and so on."""
    turn = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        turn[labels == label] = np.arange((labels == label).sum())
    return np.argsort(turn, kind="stable")[:count]
