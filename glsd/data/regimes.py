"""Data regimes (Sec. 4.5.1): class-balanced, seeded, nested subsets of the images, as sorted image ids.

The images of a class stand in an order keyed by the seed and the class, and a regime takes the first of each, so ten
images per class lie within twenty. Without labels all images are one class.
"""

import csv
import io
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glsd.config import DataConfig
from glsd.data.index import Index
from glsd.data.order import permutation


def regime(index: Index, config: DataConfig) -> NDArray[np.int64]:
    """Sorted image ids of the regime of an index, see `subset`."""
    labels = len(index) if index.labels is None else index.labels
    return subset(labels, config, index.classes, index.class_ids)


def subset(
    labels: NDArray[np.int64] | int,
    config: DataConfig,
    classes: Sequence[str] | None = None,
    class_ids: Sequence[int] | None = None,
) -> NDArray[np.int64]:
    """Sorted image ids of the regime: `images_per_class` of each class, or `fraction` of each, rounded up.

    Args:
        labels: the label of each image, or the number of images where there are no labels.
        config: the regime, its seed and size.
        classes: names of the labels, for messages.
        class_ids: numbers of the labels in the data, by which their orders are keyed; by default the labels.

    Raises:
        ValueError: images per class are asked for without labels, or more than the smallest class has.
    """
    if isinstance(labels, int):
        if config.images_per_class is not None:
            raise ValueError(
                f"data.images_per_class {config.images_per_class} needs labels and these images have none; "
                "use data.fraction, or one folder per class"
            )
        labels = np.zeros(labels, np.int64)
    if config.images_per_class is None and config.fraction is None:
        return np.arange(labels.size)
    by_class = np.argsort(labels, kind="stable")
    present, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    if config.images_per_class is not None and counts.min() < config.images_per_class:
        smallest = int(counts.argmin())
        name = classes[present[smallest]] if classes is not None else str(present[smallest])
        raise ValueError(
            f"data.images_per_class is {config.images_per_class}, but class {name!r} has only {counts[smallest]} images"
            f"; use {counts[smallest]} or fewer"
        )
    chosen = []
    for label, start, count in zip(present.tolist(), starts.tolist(), counts.tolist(), strict=True):
        # As a decimal fraction: in binary 0.1 is a little more than a tenth, and 10 % of 30 images would round up to 4.
        num_chosen = config.images_per_class or math.ceil(Fraction(repr(config.fraction)) * count)
        class_id = label if class_ids is None else class_ids[label]
        order = permutation(f"subset {config.subset_seed} {class_id}", count, np.arange(num_chosen))
        chosen.append(by_class[start + order])
    return np.sort(np.concatenate(chosen))


def write_subset(
    path: str | Path, index: Index, image_ids: NDArray[np.int64], label_column: str = DataConfig().label_column
) -> None:
    """Writes the images as a CSV list that `build_index` reads: uri, the bytes' place in it, and the class if any."""
    columns = ["uri", "offset", "length", *(["image_column"] if index.has_rows else [])]
    names = None if index.labels is None or index.classes is None else np.array(index.classes, object)[index.labels]
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns + ([] if names is None else [label_column]))
        for image_id in image_ids.tolist():
            place = index.place(image_id)
            writer.writerow([getattr(place, name) for name in columns] + ([] if names is None else [names[image_id]]))


def same_subset(saved: bytes, now: bytes) -> bool:
    """Whether two lists of `write_subset` name the same images of the same data: by their lengths and places, which
    stay when the data are moved, or by their lengths only, where rows of Parquet files are packed in one of them.
    """
    lists = [csv.DictReader(io.StringIO(content.decode("utf-8"), newline="")) for content in (saved, now)]
    packed = {"image_column" not in (listed.fieldnames or ()) for listed in lists}
    facts = ["offset", "length"] if len(packed) == 1 else ["length"]
    rows, rows_now = ([[row[fact] for fact in facts] for row in listed] for listed in lists)
    return rows == rows_now
