"""The labels of images, as their sources have them, and the classes that they make over all sources."""

import warnings
from typing import Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from glsd.storage.columns import Texts, one_column

Labels: TypeAlias = Texts | NDArray[np.int64]
"""Of each image: the name of its class, or a class id."""
CLASS_NAMES: Final = "classes.json"
"""Beside tars: the names of their class ids, as `glsd pack` writes them."""
_CLASS_ID: Final = r"^(0|-?[1-9][0-9]{0,17})$"  # 01 is a name, and not that of class 1


def as_labels(written: Texts) -> Labels:
    """Labels written as text: class ids where all are plain whole numbers (7, -1, not 07), else names of classes."""
    if pc.all(pc.match_substring_regex(written, _CLASS_ID)).as_py():
        ids: NDArray[np.int64] = written.cast(pa.int64()).to_numpy()
        return ids
    return written


def fitting_names(source: str, class_names: list[str] | None, labels: Labels | None) -> list[str] | None:
    """The names of a source's class ids, if it has ids and a name for each."""
    if class_names is None or not isinstance(labels, np.ndarray):
        return None
    if labels.min() < 0 or labels.max() >= len(class_names):
        warnings.warn(
            f"the class names of {source} are not used: it has labels {labels.min()} to {labels.max()}, and "
            f"its {CLASS_NAMES} has {len(class_names)} names, from 0",
            stacklevel=4,
        )
        return None
    return class_names


def merged_labels(
    sources: list[str], labels: list[Labels | None], class_names: list[list[str] | None]
) -> tuple[list[str] | None, list[int] | None, NDArray[np.int64] | None]:
    """(name of each label, number of each label in the data, label of each image) over all sources.

    Where all sources have class ids and agree on their names, those names are the classes and the ids the labels.
    Class ids without names are classes if an image has them, in the order of the numbers. Otherwise classes are told
    apart by their names, in the order of these.
    """
    known = [part for part in labels if part is not None]
    if len(known) < len(labels):
        if known:
            without = next(source for source, part in zip(sources, labels, strict=True) if part is None)
            warnings.warn(f"the labels of some sources are not used, since {without} has none", stacklevel=4)
        return None, None, None
    numbers = [part for part in known if isinstance(part, np.ndarray)]
    if len(numbers) == len(known) and all(names == class_names[0] for names in class_names):
        ids = np.concatenate(numbers)
        if class_names[0] is not None:
            return class_names[0], None, ids
        class_ids, of_image = np.unique(ids, return_inverse=True)
        return [str(class_id) for class_id in class_ids], class_ids.tolist(), of_image
    named = one_column(
        _class_texts(part, names) for part, names in zip(known, class_names, strict=True)
    ).dictionary_encode()
    classes = sorted(named.dictionary.to_pylist())
    rank_of = np.argsort(np.argsort(np.array(named.dictionary.to_pylist(), object)))
    return classes, None, rank_of[named.indices.to_numpy()].astype(np.int64)


def _class_texts(labels: Labels, names: list[str] | None) -> Texts:
    """The name of each image's class."""
    if not isinstance(labels, np.ndarray):
        return labels
    if names is not None:
        return pa.array(names, pa.large_string()).take(pa.array(labels))
    return pa.array(labels).cast(pa.large_string())
