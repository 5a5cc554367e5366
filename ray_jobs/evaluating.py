"""k-NN of a teacher (Sec. 4.3): which images vote and which are tested, online within a run and on its own."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from glsd.config import Config, EvaluationConfig
from glsd.data import Index, UndecodableImage, decode
from glsd.evaluation import Encoder, KnnResult, embed, knn_accuracy, majority_share
from glsd.models import Network


@dataclass(frozen=True)
class LabelledImages:
    """Some images of an index, with labels that count in the classes of the images that vote."""

    index: Index
    image_ids: np.ndarray
    labels: np.ndarray


class KnnSplit(NamedTuple):
    """Images that vote and images that are tested; no image does both."""

    anchors: LabelledImages
    queries: LabelledImages
    classes: list[str]

    @property
    def majority(self) -> float:
        """Accuracy in percent of always naming the most frequent class of the anchors."""
        return 100 * majority_share(torch.from_numpy(self.anchors.labels), torch.from_numpy(self.queries.labels))


def knn_split(train: Index, test: Index | None, evaluation: EvaluationConfig, seed: int = 0) -> KnnSplit:
    """The images of `train` vote on those of `test`, or, without `test`, on a keyed share held out of `train` itself.

    Anchors are the full training set also where a run saw a subset of it (Sec. 4.5.1); at most `evaluation.max_images`
    vote and are tested.

    Raises:
        ValueError: a data set has no labels, or `test` has a class that `train` lacks.
    """
    for index, name in ((train, "the images that vote"), (test, "the images that are tested")):
        if index is not None and index.labels is None:
            raise ValueError(f"k-NN needs labels, and {name} ({index.uri(0)}, ...) have none; one folder a class gives them")
    assert train.labels is not None
    assert train.classes is not None
    shuffled = np.random.default_rng([seed, len(train)]).permutation(len(train))
    if test is None:
        tested = max(1, round(evaluation.holdout * len(train)))
        queries, anchors = shuffled[:tested], shuffled[tested:]
        query_images = _some(train, train.labels, queries, evaluation.max_images)
    else:
        assert test.labels is not None
        assert test.classes is not None
        unknown = sorted(set(test.classes) - set(train.classes))
        if unknown:
            raise ValueError(f"the tested images have classes that no voting image has: {unknown[:5]}")
        of_train = np.array([train.classes.index(name) for name in test.classes])
        anchors = shuffled
        shuffled_test = np.random.default_rng([seed, len(test), 1]).permutation(len(test))
        query_images = _some(test, of_train[test.labels], shuffled_test, evaluation.max_images)
    return KnnSplit(_some(train, train.labels, anchors, evaluation.max_images), query_images, train.classes)


def _some(index: Index, labels: np.ndarray, image_ids: np.ndarray, at_most: int) -> LabelledImages:
    chosen = np.sort(image_ids[:at_most])
    return LabelledImages(index, chosen, labels[chosen])


class OnlineKnn:
    """A probe of the loop: k-NN of the teacher, every worker embedding its share of the images.

    The images are decoded once and kept as bytes. Nothing of the training changes: the teacher's mode is restored and
    no random number is drawn.
    """

    def __init__(self, split: KnnSplit, config: Config, device: torch.device) -> None:
        self.split, self.config, self.device = split, config, device
        distributed = torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() if distributed else 0
        self.world_size = torch.distributed.get_world_size() if distributed else 1

    def __call__(self, teacher: Network, step: int) -> dict[str, float]:  # noqa: ARG002 (a probe is told the step)
        """`{"knn": top-1 in percent}`."""
        was_training = teacher.backbone.training
        encoder = Encoder(teacher.backbone, self.config)
        try:
            anchors, queries = (self._features(encoder, share) for share in self._shares)
        finally:
            teacher.backbone.train(was_training)
        return {"knn": 100 * _accuracy(anchors, queries, self.split, self.config).top1}

    @cached_property
    def _shares(self) -> list["_Decoded"]:
        encoder = Encoder  # preprocessing needs no weights
        return [
            _decoded(images, slice(self.rank, None, self.world_size), self.config)
            for images in (self.split.anchors, self.split.queries)
        ]

    def _features(self, encoder: Encoder, share: "_Decoded") -> "_Features":
        features = embed(encoder, share.pixels, self.device)
        mine = _Features(features, share.labels)
        if self.world_size == 1:
            return mine
        gathered: list[_Features | None] = [None] * self.world_size
        torch.distributed.all_gather_object(gathered, _Features(features.cpu(), share.labels))
        parts = [part for part in gathered if part is not None]
        return _Features(torch.cat([p.features for p in parts]).to(self.device), torch.cat([p.labels for p in parts]))


class _Decoded(NamedTuple):
    pixels: np.ndarray
    labels: Tensor


class _Features(NamedTuple):
    features: Tensor
    labels: Tensor
