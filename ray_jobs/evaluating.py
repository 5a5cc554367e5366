"""k-NN of a teacher (Sec. 4.3): which images vote and which are tested, online within a run and on its own."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from glsd.config import Config, EvaluationConfig
from glsd.data import Index, UndecodableImage, build_index, decode
from glsd.evaluation import (
    Encoder,
    KnnResult,
    embed,
    knn_accuracy,
    load_encoder,
    majority_share,
    untrained_encoder,
)
from glsd.models import Network
from ray_jobs.monitor import ProgressLine
from ray_jobs.settings import num_cores

Sources = str | Path | Sequence[str | Path]


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
        """Share of the queries that always naming the most frequent class of the anchors gets right."""
        return majority_share(torch.from_numpy(self.anchors.labels), torch.from_numpy(self.queries.labels))


def knn_split(train: Index, test: Index | None, evaluation: EvaluationConfig, seed: int = 0) -> KnnSplit:
    """The images of `train` vote on those of `test`, or, without `test`, on a keyed share held out of `train` itself.

    Anchors are the full training set also where a run saw a subset of it (Sec. 4.5.1); at most `evaluation.max_images`
    vote and are tested.

    Raises:
        ValueError: a data set has no labels, or `test` has a class that `train` lacks.
    """
    for index, name in ((train, "the images that vote"), (test, "the images that are tested")):
        if index is not None and index.labels is None:
            raise ValueError(
                f"k-NN needs labels, and {name} ({index.uri(0)}, ...) have none; one folder a class gives them"
            )
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


class Preprocessed(NamedTuple):
    """Images as the encoder takes them."""

    crops: np.ndarray
    """(images, crop, crop, 3) uint8."""
    labels: Tensor


class Labelled(NamedTuple):
    """Representations and labels of some images."""

    features: Tensor
    labels: Tensor


class OnlineKnn:
    """A probe of the loop: k-NN of the teacher, every worker embedding its share of the images.

    The images are decoded once and kept as bytes. Nothing of the training changes: the encoder is a copy of the
    teacher's backbone, and no random number is drawn.
    """

    def __init__(self, split: KnnSplit, config: Config, device: torch.device) -> None:
        self._split, self._config, self._device = split, config, device
        distributed = torch.distributed.is_initialized()
        self._rank = torch.distributed.get_rank() if distributed else 0
        self._world_size = torch.distributed.get_world_size() if distributed else 1
        self._shares: list[Preprocessed] | None = None

    def __call__(self, teacher: Network, step: int) -> dict[str, float]:  # noqa: ARG002 - a probe is told the step
        """`knn`, the share of the tested images whose class is voted for, and how many vote and are tested."""
        encoder = Encoder(teacher.backbone, self._config)
        if self._world_size > 1:
            # Without synchronised batch norm each worker has statistics of its own, and checkpoints have the first's.
            for buffer in encoder.buffers():
                torch.distributed.broadcast(buffer, 0)
        if self._shares is None:
            mine = slice(self._rank, None, self._world_size)
            self._shares = [
                preprocessed(encoder, images, mine) for images in (self._split.anchors, self._split.queries)
            ]
        anchors, queries = (self._gathered(_embedded(encoder, share)) for share in self._shares)
        result = score(anchors, queries, self._split, self._config.evaluation)
        return {"knn": result.top1, "knn_anchors": result.num_anchors, "knn_queries": result.num_queries}

    def _gathered(self, mine: Labelled) -> Labelled:
        if self._world_size == 1:
            return mine
        everyones: list[Labelled] = [mine] * self._world_size
        torch.distributed.all_gather_object(everyones, Labelled(mine.features.cpu(), mine.labels))
        return Labelled(
            torch.cat([part.features for part in everyones]).to(self._device),
            torch.cat([part.labels for part in everyones]),
        )


@dataclass(frozen=True)
class Scores:
    """What `glsd evaluate` found, and what it stands beside."""

    model: str
    knn: KnnResult
    untrained: KnnResult
    """The same backbone at its random initialisation."""
    majority: float
    """Share of the tested images in the most frequent class of those that vote."""


def evaluate(model: str, data: Sources, *, test: Sources | None = None) -> Scores:
    """k-NN of a run, a checkpoint or an exported backbone on labelled images, beside its random initialisation.

    Args:
        model: what `glsd.load_encoder` takes.
        data: labelled images that vote; without `test`, a share `evaluation.holdout` of them is tested instead.
        test: labelled images that are tested.

    Raises:
        ValueError: there is no model, or the images have no labels.
    """
    encoder = load_encoder(model)
    config = encoder.config
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with ProgressLine() as line:
        voting = indexed(data, config, line)
        tested = None if test is None else indexed(test, config, line)
        everything = config.evaluation.model_copy(update={"max_images": len(voting) + (len(tested) if tested else 0)})
        split = knn_split(voting, tested, everything)
        results = []
        for network, name in ((encoder, "embedding"), (untrained_encoder(config), "embedding, untrained,")):
            sides = [
                _streamed(network.to(device), images, partial(_announce, line, name))
                for images in (split.anchors, split.queries)
            ]
            results.append(score(sides[0], sides[1], split, config.evaluation))
    return Scores(model, results[0], results[1], split.majority)


def indexed(sources: Sources, config: Config, line: ProgressLine) -> Index:
    """The index of the sources, with its progress shown."""
    index = build_index(
        sources, config.data, progress=lambda count: line.phase(f"indexing {count:,} images") if count else None
    )
    line.phase(
        f"found {len(index):,} images" + (f" of {len(index.classes):,} classes" if index.classes else ", no labels")
    )
    return index


def score_table(scores: Scores) -> str:
    """The scores for people.

    The random initialisation is the honest zero of an encoder: convolutions alone tell many images apart.
    """
    knn = scores.knn
    rows = [
        (scores.model, knn.top1),
        ("the same backbone, untrained", scores.untrained.top1),
        ("always the most frequent class", scores.majority),
    ]
    width = max(len(name) for name, _ in rows)
    error = 100 * standard_error(knn.top1, knn.num_queries)
    lines = [f"k-NN accuracy (+- {error:.1f}), k = {knn.k}: {knn.num_anchors:,} images vote on {knn.num_queries:,}"]
    return "\n".join([*lines, *(f"  {name:<{width}}  {100 * value:5.1f} %" for name, value in rows)])


def standard_error(accuracy: float, num_queries: int) -> float:
    """Of a share of that many images: how far chance alone may carry it."""
    return math.sqrt(accuracy * (1 - accuracy) / num_queries)


def score(anchors: Labelled, queries: Labelled, split: KnnSplit, evaluation: EvaluationConfig) -> KnnResult:
    """Accuracy of the vote."""
    return knn_accuracy(
        anchors.features,
        anchors.labels,
        queries.features,
        queries.labels,
        evaluation.k,
        evaluation.temperature,
        len(split.classes),
    )


def preprocessed(encoder: Encoder, images: LabelledImages, part: slice = slice(None)) -> Preprocessed:
    """A part of the images as the encoder takes them; undecodable ones are left out."""
    limits = encoder.config.data
    image_ids, labels = images.image_ids[part], images.labels[part]

    def crop(image_id: int) -> np.ndarray | None:
        try:
            image = decode(images.index.read(image_id), limits.max_pixels, limits.value_range)
        except UndecodableImage:
            return None
        return encoder.preprocess(image)

    with ThreadPoolExecutor(num_cores()) as pool:
        crops: list[np.ndarray | None] = list(pool.map(crop, image_ids.tolist()))
    side = encoder.config.evaluation.crop
    stacked = np.empty((len(crops), side, side, 3), np.uint8)
    decodable: list[int] = []
    for index in range(len(crops)):
        pixels, crops[index] = crops[index], None  # its memory is free again: there may be gigabytes of them
        if pixels is not None:
            stacked[len(decodable)] = pixels
            decodable.append(index)
    return Preprocessed(stacked[: len(decodable)], torch.from_numpy(labels[decodable]))


def _announce(line: ProgressLine, name: str, done: int) -> None:
    line.phase(f"{name} {done:,} images")


def _embedded(encoder: Encoder, images: Preprocessed) -> Labelled:
    if not len(images.crops):  # more workers than images
        return Labelled(torch.empty(0, encoder.backbone.dim), images.labels)
    return Labelled(embed(encoder, torch.from_numpy(images.crops).split(_BATCH)), images.labels)


def _streamed(encoder: Encoder, images: LabelledImages, progress: Callable[[int], None]) -> Labelled:
    """Representations of any number of images, never more than a few batches of pixels in memory."""
    features, labels = [], []
    for start in range(0, len(images.image_ids), _CHUNK):
        part = _embedded(encoder, preprocessed(encoder, images, slice(start, start + _CHUNK)))
        features.append(part.features)
        labels.append(part.labels)
        progress(min(start + _CHUNK, len(images.image_ids)))
    return Labelled(torch.cat(features), torch.cat(labels))


_BATCH = 64
_CHUNK = 512
