import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from glsd.evaluation.knn import Labelled, class_rank, knn_accuracies, majority_share, nearest
from glsd.runs.records import KnnScore


def oracle_neighbours(anchors: Sequence[Sequence[float]], query: Sequence[float], k: int) -> list[tuple[float, int]]:
    """(similarity, index) of the k nearest, by sorting all cosines of plain floats; ties: lower index."""

    def cosine(a: Sequence[float], b: Sequence[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    return sorted(
        ((cosine(anchor, query), index) for index, anchor in enumerate(anchors)), key=lambda c: (-c[0], c[1])
    )[:k]


def oracle_ranking(neighbours: list[tuple[float, int]], labels: list[int], temperature: float) -> list[int]:
    """Voted classes, most votes first; equal votes: lower class."""
    votes: dict[int, float] = {}
    for similarity, index in neighbours:
        votes[labels[index]] = votes.get(labels[index], 0.0) + math.exp(similarity / temperature)
    return sorted(votes, key=lambda label: (-votes[label], label))


def random_features(num: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))


def random_labels(num: int, num_classes: int, seed: int) -> torch.Tensor:
    return torch.randint(num_classes, (num,), generator=torch.Generator().manual_seed(seed))


def test_a_near_neighbour_outvotes_two_farther_ones() -> None:
    # Cosines to the query (1, 0) are 1, 0.6, 0.6 and 0. With temperature 0.1 class 7's one vote is e^10 = 22026 and
    # class 3's two votes are 2 e^6 = 807; with temperature 1 they are e = 2.72 and 2 e^0.6 = 3.64.
    anchors = torch.tensor([[3.0, 0.0], [6.0, 8.0], [3.0, -4.0], [0.0, 1.0]])
    labels = torch.tensor([7, 3, 3, 3])
    query = torch.tensor([[1.0, 0.0]])
    similarity, index = nearest(anchors, query, 3)
    assert index.tolist() == [[0, 1, 2]]
    torch.testing.assert_close(similarity, torch.tensor([[1.0, 0.6, 0.6]], dtype=torch.float64), atol=1e-7, rtol=0)
    sides = Labelled(anchors, labels), Labelled(query, torch.tensor([7]))
    (sharp,), (flat,) = (knn_accuracies(*sides, [3], temperature, 10) for temperature in (0.1, 1.0))
    assert (sharp.top1, flat.top1, flat.top5) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize("num_classes", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("num_queries", [1, 40])
def test_votes_equal_those_of_the_plain_oracle_for_every_k(num_classes: int, num_queries: int) -> None:
    anchors, queries = random_features(90, 6, 0), random_features(num_queries, 6, 1)
    anchor_labels, labels = random_labels(90, num_classes, 2), random_labels(num_queries, num_classes, 3)
    ks = [20, 1, 5, 200]  # in no order, and more than there are anchors
    expected = []
    for k in ks:
        right = [0, 0]
        for query, label in zip(queries.tolist(), labels.tolist(), strict=True):
            ranking = oracle_ranking(oracle_neighbours(anchors.tolist(), query, k), anchor_labels.tolist(), 0.07)
            right[0] += label in ranking[:1]
            right[1] += label in ranking[:5]
        shares = [count / num_queries for count in right]
        expected.append(KnnScore(k=min(k, 90), top1=shares[0], top5=shares[1], num_top=min(5, num_classes)))
    sides = Labelled(anchors, anchor_labels), Labelled(queries, labels)
    found = knn_accuracies(*sides, ks, 0.07, num_classes)
    assert found == expected
    assert found == [knn_accuracies(*sides, [k], 0.07, num_classes)[0] for k in ks]


@settings(max_examples=15, deadline=None)
@given(chunk=st.integers(1, 300), num_anchors=st.integers(1, 300), num_queries=st.integers(1, 300))
def test_chunks_change_no_accuracy(chunk: int, num_anchors: int, num_queries: int) -> None:
    anchors = Labelled(random_features(num_anchors, 4, 0).half(), random_labels(num_anchors, 6, 2))
    queries = Labelled(random_features(num_queries, 4, 1), random_labels(num_queries, 6, 3))
    whole, chunked = (
        knn_accuracies(anchors, queries, [10, 20, 100, 200], 0.07, 6, at_once) for at_once in (16384, chunk)
    )
    assert whole == chunked


def test_anchors_may_be_a_file(tmp_path: Path) -> None:
    anchors, queries = random_features(200, 5, 0).half(), random_features(9, 5, 1)
    np.save(tmp_path / "anchors.npy", anchors.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "anchors.npy", mmap_mode="c"))
    labels = random_labels(200, 3, 2), random_labels(9, 3, 3)
    from_file, in_memory = (
        knn_accuracies(Labelled(given, labels[0]), Labelled(queries, labels[1]), [10, 200], 0.07, 3, 64)
        for given in (mapped, anchors)
    )
    assert from_file == in_memory


def test_votes_of_many_neighbours_are_counted_a_few_queries_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    similarity = random_features(50, 30, 0).double().sort(descending=True).values
    neighbour_labels, labels = random_labels(50 * 30, 5, 1).view(50, 30), random_labels(50, 5, 2)
    together = class_rank(neighbour_labels, similarity, labels, 0.07)
    monkeypatch.setattr("glsd.evaluation.knn._COMPARED", 2 * 30**2)
    assert torch.equal(class_rank(neighbour_labels, similarity, labels, 0.07), together)


def test_neighbours_equal_those_of_the_plain_oracle() -> None:
    anchors, queries = random_features(300, 8, 0), random_features(20, 8, 1)
    similarity, index = nearest(anchors, queries, 9, anchors_at_once=64)
    for row, query in enumerate(queries.tolist()):
        expected = oracle_neighbours(anchors.tolist(), query, 9)
        assert index[row].tolist() == [found for _, found in expected]
        assert similarity[row].tolist() == pytest.approx([cosine for cosine, _ in expected], abs=2e-7)


@settings(max_examples=25, deadline=None)
@given(
    chunk=st.integers(1, 700),
    num_anchors=st.integers(1, 600),
    dim=st.integers(1, 70),
    k=st.integers(1, 30),
    dtype=st.sampled_from([torch.float16, torch.float32]),
    seed=st.integers(0, 1000),
)
def test_chunks_of_anchors_change_nothing_but_rounding(
    chunk: int, num_anchors: int, dim: int, k: int, dtype: torch.dtype, seed: int
) -> None:
    # Every third anchor is a copy of another, so that ties lie within and across chunks.
    anchors = random_features(num_anchors, dim, seed).to(dtype)
    anchors[::3] = anchors[random_labels(len(anchors[::3]), num_anchors, seed)]
    queries = random_features(300, dim, seed + 1)
    exact = functional.cosine_similarity(queries.double()[:, None], anchors.double(), dim=-1)
    for at_once in (16384, chunk):
        found = nearest(anchors, queries, k, at_once)
        torch.testing.assert_close(found.similarity, exact.topk(min(k, num_anchors)).values, atol=4e-7, rtol=0)
        torch.testing.assert_close(found.similarity, exact.gather(1, found.anchor_index), atol=4e-7, rtol=0)
        assert bool((found.anchor_index.sort(1).values.diff(dim=1) > 0).all()), "an anchor is a neighbour twice"


def test_a_query_has_the_same_neighbours_alone_and_among_others() -> None:
    anchors, queries = random_features(700, 48, 0), random_features(600, 48, 1)
    together = nearest(anchors, queries, 20)
    alone = nearest(anchors, queries[515:516], 20)
    assert torch.equal(together.anchor_index[515:516], alone.anchor_index)
    torch.testing.assert_close(together.similarity[515:516], alone.similarity, atol=4e-7, rtol=0)


@pytest.mark.parametrize("chunk", [1, 3, 16384])
def test_equally_similar_anchors_come_in_order_of_their_index(chunk: int) -> None:
    anchors = torch.tensor([[0.0, 1.0], [2.0, 1.0], [1.0, 0.5], [4.0, 2.0], [2.0, 1.0], [1.0, 0.0]])
    assert nearest(anchors, torch.tensor([[2.0, 1.0]]), 5, chunk).anchor_index.tolist() == [[1, 2, 3, 4, 5]]


def test_the_share_of_the_anchors_that_have_come_is_told_to_the_last() -> None:
    told = list[float]()
    nearest(random_features(10, 3, 0), random_features(2, 3, 1), 3, anchors_at_once=4, progress=told.append)
    assert told == [0.4, 0.8, 1.0]


def test_equal_votes_go_to_the_lower_class_and_classes_without_votes_to_nobody() -> None:
    anchors = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    query = torch.tensor([[1.0, 0.0]])
    for label, top1, top5 in ((2, 1.0, 1.0), (5, 0.0, 1.0), (0, 0.0, 0.0)):
        tested = Labelled(query, torch.tensor([label]))
        (result,) = knn_accuracies(Labelled(anchors, torch.tensor([5, 2])), tested, [2], 0.07, 6)
        assert (result.top1, result.top5) == (top1, top5)


def test_scale_of_a_representation_does_not_matter() -> None:
    anchors, queries = random_features(50, 5, 0), random_features(10, 5, 1)
    scaled = anchors * torch.logspace(-12, 12, 50)[:, None]
    torch.testing.assert_close(nearest(anchors, queries, 50).anchor_index, nearest(scaled, queries, 50).anchor_index)


def test_nearly_equal_representations_are_told_apart() -> None:
    # An untrained backbone gives every image almost the same representation.
    anchors = torch.ones(200, 64) + 1e-3 * random_features(200, 64, 0)
    assert nearest(anchors, anchors, 1).anchor_index.flatten().tolist() == list(range(200))


def test_a_small_temperature_does_not_overflow() -> None:
    anchors, labels = random_features(30, 4, 0), random_labels(30, 3, 1)
    by_nearest = labels[nearest(anchors, random_features(12, 4, 2), 1).anchor_index[:, 0]]
    tested = Labelled(random_features(12, 4, 2), by_nearest)
    (result,) = knn_accuracies(Labelled(anchors, labels), tested, [30], 1e-6, 3)
    assert result.top1 == 1.0


def test_majority_share_is_the_share_of_the_most_frequent_anchor_class() -> None:
    # Among the queries class 2 is the most frequent; of the anchors' equally frequent classes the lowest counts.
    assert majority_share(torch.tensor([4, 0, 4, 2]), torch.tensor([4, 2, 2, 2, 1])) == 1 / 5
    assert majority_share(torch.tensor([4, 0, 4, 0]), torch.tensor([4, 2, 4, 4, 0])) == 1 / 5


def test_labels_outside_the_classes_are_named() -> None:
    anchors, labels = random_features(3, 2, 0), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match=r"anchor_labels are in \[0, 2\], but 2 classes are numbered 0 to 1"):
        knn_accuracies(Labelled(anchors, labels), Labelled(anchors, torch.tensor([0, 1, 1])), [1], 0.07, 2)
    with pytest.raises(ValueError, match=r"^labels are in \[-1, 2\]"):
        knn_accuracies(Labelled(anchors, labels), Labelled(anchors, torch.tensor([0, -1, 2])), [1], 0.07, 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_representation_that_is_not_finite_is_named(bad: float) -> None:
    anchors = random_features(9, 3, 0)
    anchors[7, 1] = bad
    with pytest.raises(ValueError, match="representation of anchor 7 is not finite"):
        nearest(anchors, random_features(2, 3, 1), 3, anchors_at_once=2)


@pytest.mark.parametrize("ks", [[], [20, 0]])
def test_numbers_of_neighbours_that_are_none_are_named(ks: list[int]) -> None:
    some = Labelled(random_features(3, 2, 0), torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match=re.escape(f"each 1 or more, not {ks}")):
        knn_accuracies(some, some, ks, 0.07, 2)


def test_no_anchor_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one anchor"):
        nearest(torch.empty(0, 3), torch.ones(1, 3), 1)
