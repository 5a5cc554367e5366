"""k-NN evaluation (Sec. 4.3): a test image gets the class that its k nearest training images vote for.

Representations are L2-normalised and compared by cosine; a neighbour (the paper: anchor point) of similarity s votes
for its class with weight exp(s / temperature). Memory is bounded whatever the number of anchors and of test images,
and anchors may stay in float16 and in host memory while the test images' representations are on a GPU.

The size of a tile changes nothing in the result. Sums of floats depend on their order, which a matrix product chooses
by the shape of its operands, so normalised entries are first rounded to multiples of 2^-24, the precision of float32;
their products and all partial sums are then whole numbers (of 2^-48) that float64 holds exactly, in any order. Of two
equally similar anchors the one of lower index is nearer. Decoding, preprocessing and the representations themselves
are left to `encoder`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_ENTRY = 2.0**24  # a normalised entry is a whole number of 1 / _ENTRY
_INDEX_BITS = 14  # of a key, below the 2 * 24 + 1 bits of a similarity and its sign
_TILE = 1 << _INDEX_BITS
_QUERIES = 256  # rows of queries at once: a tile is 256 x 16384 similarities, 34 MB in float64
_COMPARED = 1 << 22  # pairs of neighbours at once, in votes: 34 MB in float64


class Neighbours(NamedTuple):
    """The k nearest anchors of each query, nearest first."""

    similarity: Float[Tensor, "queries k"]
    """Cosine, in float64."""
    anchor_index: Int64[Tensor, "queries k"]
    """Row of the anchor."""


class KnnResult(NamedTuple):
    """Accuracies of the k-NN evaluation, as shares in [0, 1], and what they rest on."""

    top1: float
    """Share of queries whose class has the most votes."""
    top5: float
    """Share of queries whose class is among the `num_top` with the most votes."""
    num_top: int
    """min(5, number of classes)."""
    k: int
    """Neighbours that voted: the k asked for, or all anchors where there are fewer."""
    num_anchors: int
    num_queries: int


def knn_accuracies(
    anchors: Float[Tensor, "anchors dim"],
    anchor_labels: Int64[Tensor, " anchors"],
    queries: Float[Tensor, "queries dim"],
    labels: Int64[Tensor, " queries"],
    ks: Sequence[int],
    temperature: float,
    num_classes: int,
    anchors_at_once: int = _TILE,
    progress: Callable[[float], object] = lambda _: None,
) -> list[KnnResult]:
    """Share of the queries that their neighbours give the right class, for each number k of neighbours that vote.

    Sec. 4.3 has k = 20, the authors' code a temperature of 0.07. The neighbours are looked for once. A k larger than
    the number of anchors is all anchors. Of two classes with equal votes the lower one wins; a class without a vote is
    never predicted, so top 5 counts a query only if a neighbour has its class. `progress` is that of `nearest`.

    Raises:
        ValueError: no k or one below 1, no anchor or no query, a label that is not in [0, num_classes), or a
            representation that is not finite.
    """
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be one number of neighbours or several, each 1 or more, not {list(ks)}")
    for name, values in (("anchor_labels", anchor_labels), ("labels", labels)):
        if values.numel() and (int(values.min()) < 0 or int(values.max()) >= num_classes):
            raise ValueError(
                f"{name} are in [{int(values.min())}, {int(values.max())}], "
                f"but {num_classes} classes are numbered 0 to {num_classes - 1}"
            )
    similarity, index = nearest(anchors, queries, max(ks), anchors_at_once, progress)
    neighbour_labels = anchor_labels.to(index.device)[index]
    labels = labels.to(index.device)
    num_top = min(5, num_classes)
    results = []
    for k in ks:
        ranks = class_rank(neighbour_labels[:, :k], similarity[:, :k], labels, temperature)
        results.append(
            KnnResult(
                top1=(ranks < 1).double().mean().item(),
                top5=(ranks < num_top).double().mean().item(),
                num_top=num_top,
                k=min(k, len(anchors)),
                num_anchors=len(anchors),
                num_queries=len(queries),
            )
        )
    return results


def knn_accuracy(
    anchors: Float[Tensor, "anchors dim"],
    anchor_labels: Int64[Tensor, " anchors"],
    queries: Float[Tensor, "queries dim"],
    labels: Int64[Tensor, " queries"],
    k: int,
    temperature: float,
    num_classes: int,
) -> KnnResult:
    """`knn_accuracies` of a single k."""
    return knn_accuracies(anchors, anchor_labels, queries, labels, [k], temperature, num_classes)[0]


def nearest(
    anchors: Float[Tensor, "anchors dim"],
    queries: Float[Tensor, "queries dim"],
    k: int,
    anchors_at_once: int = _TILE,
    progress: Callable[[float], object] = lambda _: None,
) -> Neighbours:
    """The k anchors of largest cosine similarity to each query (all of them, where there are fewer than k).

    Computed on the device of the queries; anchors come there `anchors_at_once` at a time, which bounds memory and
    leaves the result as it is. `progress` is told the share of the anchors that have come.

    Raises:
        ValueError: no anchor or no query, k or `anchors_at_once` out of range, or a representation that is not finite.
    """
    if not len(anchors) or not len(queries):
        raise ValueError(f"k-NN needs at least one anchor and one query; there are {len(anchors)} and {len(queries)}")
    if k < 1:
        raise ValueError(f"k must be 1 or more, not {k}")
    if not 1 <= anchors_at_once <= _TILE:
        raise ValueError(f"anchors_at_once must be in [1, {_TILE}], not {anchors_at_once}")
    blocks = _blocks(len(queries))
    best: list[Neighbours | None] = [None] * len(blocks)
    for start in range(0, len(anchors), anchors_at_once):
        tile = _whole_directions(anchors[start : start + anchors_at_once].to(queries.device), "anchor", start).T
        for block_index, rows in enumerate(blocks):
            found = _nearest_in_tile(tile, _whole_directions(queries[rows], "query", rows.start), k)
            found = Neighbours(found.similarity, found.anchor_index + start)
            best[block_index] = _merged(best[block_index], found, k)
        progress(min(1.0, (start + anchors_at_once) / len(anchors)))
    similarity, index = zip(*(block for block in best if block is not None), strict=True)
    return Neighbours(torch.cat(similarity), torch.cat(index))


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
    blocks = zip(neighbour_labels.split(at_once), similarity.split(at_once), labels.split(at_once), strict=True)
    return torch.cat([_class_rank(*block, temperature) for block in blocks])


def majority_share(anchor_labels: Int64[Tensor, " anchors"], labels: Int64[Tensor, " queries"]) -> float:
    """Accuracy of always answering the anchors' most frequent class (the lowest of several)."""
    return (labels == anchor_labels.bincount().argmax()).double().mean().item()


def _class_rank(
    neighbour_labels: Int64[Tensor, "queries k"],
    similarity: Float[Tensor, "queries k"],
    labels: Int64[Tensor, " queries"],
    temperature: float,
) -> Int64[Tensor, " queries"]:
    weight = ((similarity - similarity[:, :1]) / temperature).exp()  # largest is 1: a common factor, and no overflow
    same = neighbour_labels[:, :, None] == neighbour_labels[:, None, :]  # (Q, K, K)
    votes = torch.where(same, weight[:, None, :], 0.0).sum(-1)  # (Q, K) votes of each neighbour's class
    repeated = same.tril(-1).any(-1)  # a nearer neighbour has stood for this class already
    own = neighbour_labels == labels[:, None]
    own_votes = torch.where(own, votes, 0.0).amax(-1, keepdim=True)
    ahead = (votes > own_votes) | ((votes == own_votes) & (neighbour_labels < labels[:, None]))
    rank = (ahead & ~own & ~repeated).sum(-1)
    return torch.where(own.any(-1), rank, torch.iinfo(torch.int64).max)


def _blocks(num_queries: int) -> list[slice]:
    return [slice(start, start + _QUERIES) for start in range(0, num_queries, _QUERIES)]


def _whole_directions(z_bar: Float[Tensor, "n dim"], name: str, first_row: int) -> Float[Tensor, "n dim"]:
    """L2-normalised rows as whole numbers of 2^-24; a row of zeros stays zero, similar to nothing."""
    z_bar = z_bar.double()
    norm = torch.linalg.vector_norm(z_bar, dim=-1, keepdim=True)
    if not bool(norm.isfinite().all()):
        row = first_row + int((~norm.isfinite()).flatten().nonzero()[0])
        raise ValueError(f"the representation of {name} {row} is not finite")
    return torch.round(z_bar / norm.clamp_min(torch.finfo(torch.float64).tiny) * _ENTRY)


def _nearest_in_tile(tile: Float[Tensor, "dim anchors"], queries: Float[Tensor, "queries dim"], k: int) -> Neighbours:
    # The top of values that repeat is any of them, so the index, reversed, fills the low bits: no two keys are equal.
    reversed_index = torch.arange(_TILE - 1, _TILE - 1 - tile.shape[1], -1, device=tile.device)
    keys = ((queries @ tile).long() << _INDEX_BITS) | reversed_index
    top = keys.topk(min(k, tile.shape[1])).values
    return Neighbours((top >> _INDEX_BITS).double() / _ENTRY**2, _TILE - 1 - (top & (_TILE - 1)))


def _merged(nearer: Neighbours | None, further: Neighbours, k: int) -> Neighbours:
    """The best k of both, `nearer` having the lower indices, which a stable sort keeps in front."""
    if nearer is None:
        return further
    similarity, order = torch.cat([nearer.similarity, further.similarity], 1).sort(dim=1, descending=True, stable=True)
    index = torch.cat([nearer.anchor_index, further.anchor_index], 1).gather(1, order)
    return Neighbours(similarity[:, :k], index[:, :k])
