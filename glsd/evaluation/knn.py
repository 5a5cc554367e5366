"""k-NN evaluation (Sec. 4.3): a test image gets the class that its k nearest training images vote for.

Representations are L2-normalised and compared by cosine, in float32. A neighbour (the paper: anchor point) of
similarity s votes for its class with weight exp(s / temperature). Of two equally similar anchors the one of lower index
is nearer. Memory is bounded whatever the number of anchors and of test images, and anchors may stay in float16 and in
host memory while the test images' representations are on a GPU.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from glsd.runs.records import Accuracy, KnnScore

_TILE = 1 << 14  # anchors at once
_QUERIES = 256  # rows of queries at once: a tile is 256 x 16384 similarities, 34 MB as keys
_COMPARED = 1 << 22  # pairs of neighbours at once, in votes: 34 MB in float64
_ONE = 2.0**24  # a similarity of 1, in a key
_INDEX_BITS = 38  # of a key, below the 26 bits of a similarity and its sign


class Labelled(NamedTuple):
    """Representations and classes of some images."""

    features: Float[Tensor, "images dim"]
    labels: Int64[Tensor, " images"]


class Neighbours(NamedTuple):
    """The k nearest anchors of each query, nearest first."""

    similarity: Float[Tensor, "queries k"]
    """Cosine, rounded to multiples of 2^-24."""
    anchor_index: Int64[Tensor, "queries k"]
    """Row of the anchor."""


def knn_accuracies(
    anchors: Labelled,
    queries: Labelled,
    ks: Sequence[int],
    temperature: float,
    num_classes: int,
    anchors_at_once: int = _TILE,
    progress: Callable[[float], object] = lambda _: None,
) -> list[KnnScore]:
    """Share of the queries that their neighbours give the right class, for each number k of neighbours that vote.

    Sec. 4.3 has k = 20, the authors' code a temperature of 0.07. A k larger than the number of anchors is all anchors,
    and so has the score. Of two classes with equal votes the lower one wins. A class without a vote is never predicted,
    so top 5 counts a query only if a neighbour has its class. `progress` is that of `nearest`.

    Raises:
        ValueError: no k or one below 1, no anchor or no query, a label that is not in [0, num_classes), or a
            representation that is not finite.
    """
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be one number of neighbours or several, each 1 or more, not {list(ks)}")
    check_labels("anchor_labels", anchors.labels, num_classes)
    check_labels("labels", queries.labels, num_classes)
    similarity, index = nearest(anchors.features, queries.features, max(ks), anchors_at_once, progress)
    neighbour_labels, labels = anchors.labels.to(index.device)[index], queries.labels.to(index.device)
    scores = []
    for k in ks:
        ranks = class_rank(neighbour_labels[:, :k], similarity[:, :k], labels, temperature)
        accuracy = accuracy_of_ranks(ranks, num_classes)
        scores.append(KnnScore(k=min(k, len(anchors.labels)), **accuracy.model_dump()))
    return scores


def accuracy_of_ranks(ranks: Int64[Tensor, " images"], num_classes: int) -> Accuracy:
    """Shares of the images ahead of whose class there are 0 and fewer than min(5, classes) others."""
    top = min(5, num_classes)
    top1, top5 = ((ranks < limit).double().mean().item() for limit in (1, top))
    return Accuracy(top1=top1, top5=top5, num_top=top)


def check_labels(name: str, labels: Int64[Tensor, " images"], num_classes: int) -> None:
    """Refuse labels that are not in [0, num_classes), and none at all."""
    if not labels.numel():
        raise ValueError(f"{name} are empty; at least one image is needed")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{name} are in [{low}, {high}], but {num_classes} classes are numbered 0 to {num_classes - 1}"
        )


def nearest(
    anchors: Float[Tensor, "anchors dim"],
    queries: Float[Tensor, "queries dim"],
    k: int,
    anchors_at_once: int = _TILE,
    progress: Callable[[float], object] = lambda _: None,
) -> Neighbours:
    """The k anchors of largest cosine similarity to each query (all of them, where there are fewer than k).

    Computed on the device of the queries; anchors come there `anchors_at_once` at a time, which bounds memory.
    `progress` is told the share of the anchors that have come.

    Raises:
        ValueError: no anchor or no query, k or `anchors_at_once` below 1, or a representation that is not finite.
    """
    if not len(anchors) or not len(queries):
        raise ValueError(f"k-NN needs at least one anchor and one query; there are {len(anchors)} and {len(queries)}")
    if min(k, anchors_at_once) < 1:
        raise ValueError(f"k and anchors_at_once must be 1 or more, not {k} and {anchors_at_once}")
    most_index = (1 << _INDEX_BITS) - 1
    device = queries.device
    shape = (len(queries), min(k, len(anchors)))
    best = torch.full(shape, torch.iinfo(torch.int64).min, device=device)
    for start in range(0, len(anchors), anchors_at_once):
        tile = _directions(anchors[start : start + anchors_at_once].to(device), "anchor", start).T
        # The top of values that repeat is any of them, so the index, reversed, fills the low bits: no two keys are
        # equal, and of equal similarities the lower index has the larger key.
        reversed_index = most_index - torch.arange(start, start + tile.shape[1], device=device)
        for row in range(0, len(queries), _QUERIES):
            similarity = _directions(queries[row : row + _QUERIES], "query", row) @ tile
            keys = (similarity * _ONE).round().long() << _INDEX_BITS | reversed_index
            nearer = best[row : row + _QUERIES]
            nearer.copy_(torch.cat([nearer, keys], 1).topk(shape[1]).values)
        progress(min(1.0, (start + anchors_at_once) / len(anchors)))
    return Neighbours((best >> _INDEX_BITS).double() / _ONE, most_index - (best & most_index))


def class_rank(
    neighbour_labels: Int64[Tensor, "queries k"],
    similarity: Float[Tensor, "queries k"],
    labels: Int64[Tensor, " queries"],
    temperature: float,
) -> Int64[Tensor, " queries"]:
    """How many classes have more votes than the query's own (equal votes: and a lower number).

    A class without a vote has the rank 2^63 - 1, behind all. Votes are compared among the k neighbours, not in a table
    of all classes, so the number of classes costs nothing.
    """
    at_once = max(1, _COMPARED // neighbour_labels.shape[1] ** 2)
    parts = (side.split(at_once) for side in (neighbour_labels, similarity, labels[:, None]))
    ranks = []
    for voting, close, label in zip(*parts, strict=True):
        weight = ((close - close[:, :1]) / temperature).exp()  # largest is 1: a common factor, and no overflow
        same = voting[:, :, None] == voting[:, None, :]  # (Q, K, K)
        votes = torch.where(same, weight[:, None, :], 0.0).sum(-1)  # (Q, K) votes of each neighbour's class
        repeated = same.tril(-1).any(-1)  # a nearer neighbour has stood for this class already
        own = voting == label
        own_votes = torch.where(own, votes, 0.0).amax(-1, keepdim=True)
        ahead = (votes > own_votes) | ((votes == own_votes) & (voting < label))
        rank = (ahead & ~own & ~repeated).sum(-1)
        ranks.append(torch.where(own.any(-1), rank, torch.iinfo(torch.int64).max))
    return torch.cat(ranks)


def majority_share(anchor_labels: Int64[Tensor, " anchors"], labels: Int64[Tensor, " queries"]) -> float:
    """Accuracy of always answering the anchors' most frequent class (the lowest of several)."""
    return (labels == anchor_labels.bincount().argmax()).double().mean().item()


def _directions(z_bar: Float[Tensor, "n dim"], name: str, first_row: int) -> Float[Tensor, "n dim"]:
    """L2-normalised rows in float32; a row of zeros stays zero, similar to nothing."""
    norm = torch.linalg.vector_norm(z_bar, dim=-1, keepdim=True, dtype=torch.float64)
    if not bool(norm.isfinite().all()):
        row = first_row + int((~norm.isfinite()).flatten().nonzero()[0])
        raise ValueError(f"the representation of {name} {row} is not finite")
    directions: Tensor = z_bar / norm.clamp_min(torch.finfo(torch.float64).tiny)
    return directions.float()
