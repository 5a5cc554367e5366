import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glsd.losses.global_loss import global_representation_loss
from glsd.losses.outputs import HeadPair
from tests import oracles

TAU_S, TAU_T = 0.1, 0.05


def unit(seed: int, *shape: int) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True)


def loss(u_bar_s: Tensor, u_bar_t: Tensor, weight_s: Tensor, weight_t: Tensor, center: Tensor) -> Tensor:
    return global_representation_loss(u_bar_s, u_bar_t, HeadPair(weight_s, weight_t, center, TAU_S, TAU_T))


def inputs(seed: int, batch: int, views: int, teacher_views: int = 2) -> list[Tensor]:
    dim, prototypes = 5, 9
    return [
        unit(seed, batch, views, dim),
        unit(seed + 1, batch, teacher_views, dim),
        unit(seed + 2, prototypes, dim),
        unit(seed + 3, prototypes, dim),
        0.1 * unit(seed + 4, prototypes),
    ]


def by_loops(u_bar_s: Tensor, u_bar_t: Tensor, weight_s: Tensor, weight_t: Tensor, center: Tensor) -> float:
    losses = []
    for b in range(len(u_bar_s)):
        p = [oracles.teacher_head(u, weight_t.tolist(), center.tolist(), TAU_T) for u in u_bar_t[b].tolist()]
        q = [oracles.student_head(u, weight_s.tolist(), TAU_S) for u in u_bar_s[b].tolist()]
        losses.append(oracles.global_loss(p, q))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("num_local_crops", [0, 1, 8])
def test_global_loss_with_multi_crop_is_equation_8(num_local_crops: int) -> None:
    given = inputs(0, batch=3, views=2 + num_local_crops)
    assert loss(*given).item() == pytest.approx(by_loops(*given), rel=1e-13)


@pytest.mark.parametrize("num_views", [2, 3, 5])
def test_global_loss_where_the_teacher_sees_all_views_is_equation_2(num_views: int) -> None:
    given = inputs(1, batch=2, views=num_views, teacher_views=num_views)
    assert loss(*given).item() == pytest.approx(by_loops(*given), rel=1e-13)


def test_a_view_is_not_compared_with_itself() -> None:
    u_bar_s, u_bar_t, *rest = inputs(2, batch=1, views=2)
    u_bar_s.requires_grad_()
    loss(u_bar_s, u_bar_t, *rest).backward()
    before = u_bar_s.grad
    changed = u_bar_t.clone()
    changed[:, 0] = unit(99, 1, 5)
    u_bar_s.grad = None
    loss(u_bar_s, changed, *rest).backward()
    assert before is not None
    assert u_bar_s.grad is not None
    torch.testing.assert_close(u_bar_s.grad[:, 0], before[:, 0], rtol=0, atol=1e-15)
    assert not torch.allclose(u_bar_s.grad[:, 1], before[:, 1])


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**31), st.permutations(range(4)))
def test_order_of_images_does_not_change_the_mean(seed: int, order: list[int]) -> None:
    u_bar_s, u_bar_t, *rest = inputs(seed, batch=4, views=5)
    torch.testing.assert_close(
        loss(u_bar_s[order], u_bar_t[order], *rest), loss(u_bar_s, u_bar_t, *rest), rtol=1e-13, atol=0
    )


def test_loss_of_a_batch_is_the_mean_over_its_images() -> None:
    u_bar_s, u_bar_t, *rest = inputs(3, batch=4, views=5)
    alone = [loss(u_bar_s[b : b + 1], u_bar_t[b : b + 1], *rest) for b in range(4)]
    torch.testing.assert_close(loss(u_bar_s, u_bar_t, *rest), torch.stack(alone).mean(), rtol=1e-13, atol=0)


def test_order_of_local_crops_does_not_matter() -> None:
    u_bar_s, u_bar_t, *rest = inputs(4, batch=2, views=6)
    shuffled = u_bar_s[:, [0, 1, 4, 2, 5, 3]]
    torch.testing.assert_close(loss(shuffled, u_bar_t, *rest), loss(u_bar_s, u_bar_t, *rest), rtol=1e-13, atol=0)


def test_no_gradient_reaches_the_teacher() -> None:
    given = [tensor.requires_grad_() for tensor in inputs(5, batch=2, views=4)]
    loss(*given).backward()
    assert [tensor.grad is not None for tensor in given] == [True, False, True, False, False]


def test_a_student_equal_to_its_teacher_at_one_temperature_pays_the_teachers_entropy() -> None:
    u_bar, weight = unit(6, 3, 1, 5), unit(7, 9, 5)
    views = u_bar.expand(-1, 4, -1)
    heads = HeadPair(weight, weight, torch.zeros(9, dtype=torch.float64), TAU_S, TAU_S)
    found = global_representation_loss(views, views[:, :2], heads)
    p = torch.softmax(u_bar[:, 0] @ weight.T / TAU_S, -1)
    torch.testing.assert_close(found, -(p * p.log()).sum(-1).mean(), rtol=1e-13, atol=0)
