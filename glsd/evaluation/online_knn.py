"""k-NN of the teacher during a run (Sec. 4.3): its images are decoded once, kept as bytes and shared by the workers."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from glsd.config import Config
from glsd.data.images import UndecodableImage, decode
from glsd.data.splits import LabelledImages, LabelledSplit
from glsd.encoder.encoder import Encoder, embed
from glsd.evaluation.knn import Labelled, knn_accuracies, majority_share
from glsd.models.student_teacher import Network

_BATCH = 64


class Preprocessed(NamedTuple):
    """Images as the encoder takes them."""

    crops: np.ndarray
    """(images, crop, crop, 3) uint8."""
    labels: Tensor


class OnlineKnn:
    """k-NN of the teacher, every worker embedding its share of the images.

    The images are decoded once, this worker's share by `num_threads`, and kept as bytes. Nothing of the training
    changes: the encoder is a copy of the teacher's backbone, and no random number is drawn.
    """

    def __init__(self, split: LabelledSplit, config: Config, device: torch.device, num_threads: int) -> None:
        self._split, self._config, self._device, self._num_threads = split, config, device, num_threads
        distributed = torch.distributed.is_initialized()
        self._rank = torch.distributed.get_rank() if distributed else 0
        self._world_size = torch.distributed.get_world_size() if distributed else 1
        self._shares: list[Preprocessed] | None = None

    def __call__(self, teacher: Network) -> dict[str, float]:
        """`knn`, the share of the tested images whose class is voted for, `knn_majority`, that of always naming the
        most frequent class, and how many images vote and are tested.
        """
        encoder = Encoder(teacher.backbone, self._config)
        if self._world_size > 1:
            # Without synchronised batch norm each worker has statistics of its own, and checkpoints have the first's.
            for buffer in encoder.buffers():
                torch.distributed.broadcast(buffer, 0)
        if self._shares is None:
            mine = slice(self._rank, None, self._world_size)
            self._shares = [preprocessed(encoder, side.rows(mine), self._num_threads) for side in self._split[:2]]
        anchors, queries = (self._gathered(embedded(encoder, share)) for share in self._shares)
        evaluation, num_classes = self._config.evaluation, len(self._split.classes)
        (result,) = knn_accuracies(anchors, queries, [evaluation.k], evaluation.temperature, num_classes)
        return {
            "knn": result.top1,
            "knn_majority": majority_share(anchors.labels, queries.labels),
            "knn_anchors": len(anchors.labels),
            "knn_queries": len(queries.labels),
        }

    def _gathered(self, mine: Labelled) -> Labelled:
        if self._world_size == 1:
            return mine
        everyones: list[Labelled] = [mine] * self._world_size
        torch.distributed.all_gather_object(everyones, Labelled(mine.features.cpu(), mine.labels))
        return Labelled(
            torch.cat([part.features for part in everyones]).to(self._device),
            torch.cat([part.labels for part in everyones]),
        )


def preprocessed(encoder: Encoder, images: LabelledImages, num_threads: int) -> Preprocessed:
    """Images as the encoder takes them, decoded by so many threads; undecodable ones are left out."""
    limits, side, image_ids = encoder.config.data, encoder.config.evaluation.crop, images.image_ids.tolist()
    crops = np.empty((len(image_ids), side, side, 3), np.uint8)

    def crop(row: int) -> bool:
        try:
            image = decode(images.index.read(image_ids[row]), limits.max_pixels, limits.value_range)
        except UndecodableImage:
            return False
        crops[row] = encoder.preprocess(image)
        return True

    with ThreadPoolExecutor(num_threads) as pool:
        decoded = np.flatnonzero(list(pool.map(crop, range(len(crops)))))
    for place, row in enumerate(decoded):  # in place: there may be gigabytes of them
        crops[place] = crops[row]
    return Preprocessed(crops[: len(decoded)], torch.from_numpy(images.labels[decoded]))


def embedded(encoder: Encoder, images: Preprocessed) -> Labelled:
    """Representations of preprocessed images."""
    if not len(images.crops):  # more workers than images
        return Labelled(torch.empty(0, encoder.backbone.dim), images.labels)
    return Labelled(embed(encoder, torch.from_numpy(images.crops).split(_BATCH)), images.labels)
