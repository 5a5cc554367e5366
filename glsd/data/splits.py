"""Labelled images for the probes: which of them train or vote and which are tested."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from glsd.config import EvaluationConfig
from glsd.data.index import Index


@dataclass(frozen=True)
class LabelledImages:
    """Some images of an index, with labels that count in the classes of the images that vote."""

    index: Index
    image_ids: np.ndarray
    labels: np.ndarray

    def rows(self, rows: np.ndarray | slice) -> "LabelledImages":
        """Some of them, by their places among all, as a mask or as a slice."""
        return LabelledImages(self.index, self.image_ids[rows], self.labels[rows])


class LabelledSplit(NamedTuple):
    """Images that vote and images that are tested; no image does both."""

    anchors: LabelledImages
    queries: LabelledImages
    classes: list[str]


def has_classes(index: Index) -> bool:
    """Whether the images have labels, and not all the same, as the only folder of a folder would give them."""
    return index.labels is not None and bool((index.labels != index.labels[0]).any())


def labelled_split(train: Index, test: Index | None, evaluation: EvaluationConfig) -> LabelledSplit:
    """The images of `train` vote on those of `test`, or, without `test`, on a keyed share held out of `train` itself.

    Anchors are the full training set also where a run saw a subset of it (Sec. 4.5.1); at most `evaluation.max_images`
    vote and are tested.

    Raises:
        ValueError: a data set has no labels, `train` has one image or one class, or `test` a class that `train` lacks.
    """
    for index, name in ((train, "the images that vote"), (test, "the images that are tested")):
        if index is not None and index.labels is None:
            raise ValueError(
                f"{name} ({index.uri(0)}, ...) have no labels, which k-NN and linear layers need; one folder per class "
                "gives them"
            )
    assert train.labels is not None
    assert train.classes is not None
    if not has_classes(train):
        raise ValueError(
            f"the images that vote ({train.uri(0)}, ...) are of one class, {train.classes[train.labels[0]]}; k-NN and "
            "linear layers need two"
        )
    shuffled = np.random.default_rng([0, len(train)]).permutation(len(train))
    if test is None:
        tested = max(1, round(evaluation.holdout * len(train)))
        queries, anchors = shuffled[:tested], shuffled[tested:]
        query_images = _some(train, train.labels, queries, evaluation.max_images)
    else:
        assert test.labels is not None
        assert test.classes is not None
        rows = {name: row for row, name in enumerate(train.classes)}
        of_train = np.array([rows.get(name, -1) for name in test.classes])
        if unknown := [test.classes[label] for label in np.unique(test.labels) if of_train[label] < 0]:
            raise ValueError(f"the tested images have classes that no voting image has: {unknown[:5]}")
        anchors = shuffled
        shuffled_test = np.random.default_rng([0, len(test), 1]).permutation(len(test))
        query_images = _some(test, of_train[test.labels], shuffled_test, evaluation.max_images)
    return LabelledSplit(_some(train, train.labels, anchors, evaluation.max_images), query_images, train.classes)


def _some(index: Index, labels: np.ndarray, image_ids: np.ndarray, at_most: int) -> LabelledImages:
    chosen = np.sort(image_ids[:at_most])
    return LabelledImages(index, chosen, labels[chosen])
