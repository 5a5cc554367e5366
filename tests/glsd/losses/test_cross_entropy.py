import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glsd.losses.cross_entropy import (
    distillation_cross_entropy,
    soft_cross_entropy,
    student_log_distribution,
    teacher_distribution,
)
from glsd.losses.outputs import HeadPair
from tests import oracles

TAU_S, TAU_T = 0.1, 0.04
Case = dict[str, Tensor]


def case(seed: int, rows: int, teacher_rows: int, terms: int, dim: int = 6, prototypes: int = 11) -> Case:
    """Inputs of the fused loss in float64."""
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> Tensor:
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return x / x.norm(dim=-1, keepdim=True)

    return {
        "x_s": unit(rows, dim),
        "weight_s": unit(prototypes, dim),
        "x_t": unit(teacher_rows, dim),
        "weight_t": unit(prototypes, dim),
        "center": 0.1 * torch.randn(prototypes, generator=generator, dtype=torch.float64),
        "teacher_rows": torch.randint(teacher_rows, (rows, terms), generator=generator),
        "row_weights": torch.rand(rows, terms, generator=generator, dtype=torch.float64),
    }


def plain(given: Case) -> Tensor:
    p = teacher_distribution(given["x_t"] @ given["weight_t"].T, given["center"], TAU_T)
    log_q = student_log_distribution(given["x_s"] @ given["weight_s"].T, TAU_S)
    entropies = soft_cross_entropy(p[given["teacher_rows"]], log_q[:, None])  # (R, J)
    return (given["row_weights"] * entropies).sum()


def fused(given: Case, chunk_rows: int | None = None) -> Tensor:
    return loss_of(given, TAU_S, TAU_T, chunk_rows)


def loss_of(given: Case, tau_s: float, tau_t: float, chunk_rows: int | None = None) -> Tensor:
    heads = HeadPair(given["weight_s"], given["weight_t"], given["center"], tau_s, tau_t)
    return distillation_cross_entropy(
        given["x_s"], given["x_t"], heads, given["teacher_rows"], given["row_weights"], chunk_rows
    )


def with_gradients(loss: Tensor, given: Case) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, (given["x_s"], given["weight_s"]))]


def requiring_gradients(given: Case) -> Case:
    return {
        name: value.clone().requires_grad_() if value.is_floating_point() else value for name, value in given.items()
    }


def test_soft_cross_entropy_is_equation_3() -> None:
    p = torch.rand(4, 3, 9, dtype=torch.float64).softmax(-1)
    q = torch.rand(4, 3, 9, dtype=torch.float64).softmax(-1)
    found = soft_cross_entropy(p, q.log())
    for i, j in itertools.product(range(4), range(3)):
        expected = oracles.cross_entropy(p[i, j].tolist(), q[i, j].tolist())
        assert found[i, j].item() == pytest.approx(expected, rel=1e-13)


def test_distributions_are_centred_and_sharpened_softmaxes() -> None:
    given = case(0, rows=3, teacher_rows=2, terms=1)
    p = teacher_distribution(given["x_t"] @ given["weight_t"].T, given["center"], TAU_T)
    log_q = student_log_distribution(given["x_s"] @ given["weight_s"].T, TAU_S)
    weight_s, weight_t, center = (given[name].tolist() for name in ("weight_s", "weight_t", "center"))
    for row, x in zip(p, given["x_t"].tolist(), strict=True):
        assert row.tolist() == pytest.approx(oracles.teacher_head(x, weight_t, center, TAU_T), rel=1e-12)
    for row, x in zip(log_q.exp(), given["x_s"].tolist(), strict=True):
        assert row.tolist() == pytest.approx(oracles.student_head(x, weight_s, TAU_S), rel=1e-12)


def test_fused_loss_is_the_weighted_sum_of_equation_3() -> None:
    given = case(1, rows=7, teacher_rows=4, terms=2)
    weight_s, weight_t, center = (given[name].tolist() for name in ("weight_s", "weight_t", "center"))
    expected = 0.0
    for x, indices, weights in zip(
        given["x_s"].tolist(), given["teacher_rows"].tolist(), given["row_weights"].tolist(), strict=True
    ):
        q = oracles.student_head(x, weight_s, TAU_S)
        for index, weight in zip(indices, weights, strict=True):
            p = oracles.teacher_head(given["x_t"][index].tolist(), weight_t, center, TAU_T)
            expected += weight * oracles.cross_entropy(p, q)
    assert fused(given).item() == pytest.approx(expected, rel=1e-13)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 12),
    teacher_rows=st.integers(1, 9),
    terms=st.integers(1, 3),
    chunk_rows=st.integers(1, 13),
)
def test_fused_equals_plain_in_value_and_gradients_for_any_chunk(
    seed: int, rows: int, teacher_rows: int, terms: int, chunk_rows: int
) -> None:
    given = requiring_gradients(case(seed, rows, teacher_rows, terms))
    expected = with_gradients(plain(given), given)
    for found, wanted in zip(with_gradients(fused(given, chunk_rows), given), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_fused_equals_plain_with_the_derived_chunk() -> None:
    given = requiring_gradients(case(2, rows=300, teacher_rows=100, terms=2, dim=16, prototypes=20_000))
    expected = with_gradients(plain(given), given)
    for found, wanted in zip(with_gradients(fused(given), given), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_fused_in_float32_is_as_exact_as_float32() -> None:
    given = requiring_gradients(case(3, rows=40, teacher_rows=20, terms=2, dim=32, prototypes=512))
    single = requiring_gradients(
        {name: v.float() if v.is_floating_point() else v for name, v in case(3, 40, 20, 2, 32, 512).items()}
    )
    expected = with_gradients(plain(given), given)
    for found, wanted in zip(with_gradients(fused(single, 7), single), expected, strict=True):
        assert found.dtype == torch.float32
        assert (found - wanted).norm() < 2e-6 * wanted.norm()


def test_under_autocast_fused_is_no_further_from_the_truth_than_plain() -> None:
    inputs = case(4, rows=60, teacher_rows=30, terms=2, dim=64, prototypes=1024)
    given = requiring_gradients(inputs)
    single = requiring_gradients({name: v.float() if v.is_floating_point() else v for name, v in inputs.items()})
    truth = with_gradients(plain(given), given)
    with torch.autocast("cpu", torch.bfloat16):
        losses = fused(single), plain(single)
    ours, theirs = (with_gradients(loss, single) for loss in losses)
    for found, other, wanted in zip(ours, theirs, truth, strict=True):
        assert found.dtype == torch.float32
        assert (found - wanted).norm() < 1.5 * (other - wanted).norm() + 1e-3 * wanted.norm()


@pytest.mark.parametrize(("rows", "prototypes"), [(60, 1024), (7, 3)])
def test_under_autocast_only_inputs_are_rounded_in_the_loss(rows: int, prototypes: int) -> None:
    taus = 2**-3, 2**-5  # dividing by them rounds nothing
    given = {
        name: value.bfloat16().double() if name.startswith(("x_", "weight_")) else value
        for name, value in case(16, rows, 30, 2, dim=64, prototypes=prototypes).items()
    }
    truth = loss_of(given, *taus)
    with torch.autocast("cpu", torch.bfloat16):
        single = {name: value.float() if value.is_floating_point() else value for name, value in given.items()}
        loss = loss_of(single, *taus)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(truth.item(), rel=2e-6)


def test_gradients_scale_with_what_comes_after_the_loss() -> None:
    given = requiring_gradients(case(5, rows=5, teacher_rows=4, terms=2))
    once = with_gradients(fused(given), given)
    thrice = with_gradients(3 * fused(given), given)
    for a, b in zip(once[1:], thrice[1:], strict=True):
        torch.testing.assert_close(3 * a, b, rtol=1e-14, atol=0)


def test_only_the_student_gets_a_gradient() -> None:
    given = requiring_gradients(case(6, rows=5, teacher_rows=4, terms=2))
    fused(given).backward()
    assert {name for name, value in given.items() if value.grad is not None} == {"x_s", "weight_s"}


@pytest.mark.parametrize("frozen", ["x_s", "weight_s"])
def test_a_frozen_input_leaves_the_others_gradient_unchanged(frozen: str) -> None:
    free = requiring_gradients(case(7, rows=5, teacher_rows=4, terms=2))
    fused(free).backward()
    given = {
        name: value.detach() if name == frozen else value
        for name, value in requiring_gradients(case(7, 5, 4, 2)).items()
    }
    fused(given, 2).backward()
    (other,) = {"x_s", "weight_s"} - {frozen}
    assert given[frozen].grad is None
    torch.testing.assert_close(given[other].grad, free[other].grad, rtol=1e-12, atol=1e-14)


def test_without_gradients_the_loss_is_the_same() -> None:
    given = case(8, rows=5, teacher_rows=4, terms=2)
    assert not fused(given).requires_grad
    assert torch.equal(fused(given), fused(requiring_gradients(given)).detach())


def test_a_second_derivative_is_refused() -> None:
    given = requiring_gradients(case(9, rows=5, teacher_rows=4, terms=2))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(fused(given), given["x_s"], create_graph=True)


def test_a_second_backward_is_refused() -> None:
    given = requiring_gradients(case(10, rows=5, teacher_rows=4, terms=2))
    loss = fused(given)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inputs_are_left_as_they_were() -> None:
    given = requiring_gradients(case(11, rows=5, teacher_rows=4, terms=2))
    before = {name: value.detach().clone() for name, value in given.items()}
    fused(given).backward()
    assert all(torch.equal(before[name], given[name].detach()) for name in given)


@pytest.mark.parametrize("name", ["x_s", "weight_s", "x_t", "weight_t", "center", "row_weights"])
def test_a_nan_in_any_input_surfaces_in_the_loss(name: str) -> None:
    given = case(12, rows=5, teacher_rows=4, terms=2)
    given[name].view(-1)[3] = float("nan")
    assert fused(given, 2).isnan()


def test_a_nan_in_a_teacher_row_of_weight_zero_surfaces() -> None:
    given = case(13, rows=5, teacher_rows=4, terms=2)
    given["teacher_rows"][2, 1] = 3
    given["row_weights"][2, 1] = 0
    given["x_t"][3] = float("nan")
    assert fused(given).isnan()


def test_distributions_without_overlap_stay_finite() -> None:
    given = case(14, rows=5, teacher_rows=4, terms=2)
    given["x_s"], given["x_t"] = 1e4 * given["x_s"], 1e4 * given["x_t"]
    given = requiring_gradients({name: v.float() if v.is_floating_point() else v for name, v in given.items()})
    assert all(part.isfinite().all() for part in with_gradients(fused(given, 3), given))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31))
def test_order_of_rows_does_not_matter(seed: int) -> None:
    given = case(seed, rows=9, teacher_rows=5, terms=2)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    shuffled = given | {name: given[name][order] for name in ("x_s", "teacher_rows", "row_weights")}
    torch.testing.assert_close(fused(shuffled, 4), fused(given, 4), rtol=1e-13, atol=0)


def test_adding_a_constant_to_the_center_changes_nothing() -> None:
    given = case(15, rows=5, teacher_rows=4, terms=2)
    shifted = given | {"center": given["center"] + 0.3}
    torch.testing.assert_close(fused(shifted), fused(given), rtol=1e-13, atol=0)
