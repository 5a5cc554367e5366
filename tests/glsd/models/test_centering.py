import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glsd.models.centering import Centers, mean_logits, update_centers


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(1, 7), seed=st.integers(0, 1000))
def test_the_mean_of_logits_needs_only_the_mean_bottleneck(rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    logits = [
        [sum(a * b for a, b in zip(row, column, strict=True)) for column in weight.tolist()] for row in x.tolist()
    ]
    expected = [sum(column) / rows for column in zip(*logits, strict=True)]
    assert mean_logits(x.mean(0), weight).tolist() == pytest.approx(expected)


def test_centers_move_towards_the_mean_logits() -> None:
    centers: Centers = {"global": torch.tensor([1.0, -2.0]), "dense": torch.tensor([0.5, 0.0])}
    means: Centers = {"global": torch.tensor([3.0, 3.0]), "dense": torch.tensor([-1.0, 2.0])}
    moved = update_centers(centers, means, 0.9)
    assert moved["global"].tolist() == pytest.approx([0.9 * 1 + 0.1 * 3, 0.9 * -2 + 0.1 * 3])
    assert moved["dense"].tolist() == pytest.approx([0.9 * 0.5 - 0.1, 0.2])


def test_a_false_gate_keeps_the_centers_from_numbers_that_are_none() -> None:
    centers: Centers = {"global": torch.tensor([1.0, -2.0])}
    broken: Centers = {"global": torch.tensor([torch.nan, torch.inf])}
    kept = update_centers(centers, broken, 0.9, torch.tensor(False))
    assert kept.keys() == {"global"}
    assert torch.equal(kept["global"], centers["global"])
    assert update_centers(centers, broken, 0.9, torch.tensor(True))["global"].isfinite().sum() == 0
