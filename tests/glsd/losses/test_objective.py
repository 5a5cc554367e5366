from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from glsd.config import ObjectiveConfig
from glsd.losses.global_loss import global_representation_loss
from glsd.losses.local_loss import local_representation_loss, matched_share
from glsd.losses.objective import Losses, geometric_matches, objective, similarity_matches
from glsd.losses.outputs import HeadPair, Level, ViewOutputs
from tests.glsd.losses.test_local_loss import GROUPS, Case, Groups

TAU_T = 0.06


class Batch(NamedTuple):
    """Arguments of the objective."""

    student: list[ViewOutputs]
    teacher: ViewOutputs
    geo: Tensor
    heads: dict[Level, HeadPair]


def batch(groups: Groups, dense: bool = True) -> Batch:
    case, other = Case(0, 3, groups), Case(100, 3, groups)  # the second one's map means stand for u-bar

    def outputs(z: Tensor, u: Tensor, u_other: Tensor) -> ViewOutputs:
        u_bar = torch.nn.functional.normalize(u_other.mean((2, 3)), dim=-1)
        return ViewOutputs(z.mean((2, 3)), z, {"global": u_bar, "dense": u} if dense else {"global": u_bar})

    levels: dict[Level, Case] = {"global": other, "dense": case} if dense else {"global": other}
    taus = (ObjectiveConfig().student_temperature, TAU_T)
    return Batch(
        [outputs(*parts) for parts in zip(case.z_s, case.u_s, other.u_s, strict=True)],
        outputs(case.z_t, case.u_t, other.u_t),
        case.geo,
        {level: HeadPair(of.weight_s, of.weight_t, of.center, *taus) for level, of in levels.items()},
    )


def evaluate(given: Batch, config: ObjectiveConfig) -> Losses:
    return objective(*given, config)


def parts(given: Batch, config: ObjectiveConfig) -> tuple[Tensor, Tensor, Tensor]:
    """(L_G, L_L, share of kept matches) from the room's own parts, which other tests hold to the equations."""
    u_bar_s = torch.cat([group.u["global"] for group in given.student], 1)
    l_g = global_representation_loss(u_bar_s, given.teacher.u["global"], given.heads["global"])
    matches, view = [], 0
    for group in given.student:
        views = group.z.shape[1]
        if config.setting == "similarity":
            matches.append(similarity_matches(group.z, given.teacher.z))
        else:
            geo_s, geo_t = given.geo[:, view : view + views], given.geo[:, :2]
            grid_s, grid_t = tuple(group.z.shape[2:4]), tuple(given.teacher.z.shape[2:4])
            matches.append(geometric_matches(geo_s, grid_s, geo_t, grid_t, config.threshold_scale))
        view += views
    u_s = [group.u["dense"] for group in given.student]
    l_l = local_representation_loss(u_s, given.teacher.u["dense"], matches, given.heads["dense"])
    return l_g, l_l, matched_share(matches)


@pytest.mark.parametrize("threshold_scale", [1.0, 0.5, None])
@pytest.mark.parametrize("setting", ["similarity", "geometric"])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS.keys())
def test_with_a_local_loss_the_total_is_half_of_each(
    groups: Groups, setting: str, threshold_scale: float | None
) -> None:
    given = batch(groups)
    config = ObjectiveConfig.model_validate({"setting": setting, "threshold_scale": threshold_scale})
    found, (l_g, l_l, share) = evaluate(given, config), parts(given, config)
    assert torch.equal(found.global_loss, l_g)
    assert torch.equal(found.local_loss, l_l)
    assert torch.equal(found.matched, share)
    torch.testing.assert_close(found.total, 0.5 * l_g + 0.5 * l_l, rtol=1e-14, atol=0)
    assert all(part.shape == () for part in found)


def test_weights_are_settings() -> None:
    given = batch(GROUPS["2 + 8"])
    found = evaluate(given, ObjectiveConfig(global_weight=2.0, local_weight=0.25))
    torch.testing.assert_close(found.total, 2 * found.global_loss + 0.25 * found.local_loss, rtol=1e-14, atol=0)


def test_vanilla_is_the_global_loss_and_needs_no_dense_head() -> None:
    config = ObjectiveConfig(setting="vanilla")
    without, with_dense = (evaluate(batch(GROUPS["2 + 8"], dense), config) for dense in (False, True))
    assert torch.equal(without.total, without.global_loss)
    assert torch.equal(without.total, with_dense.total)
    assert without.local_loss.item() == without.matched.item() == 0


def test_settings_differ_in_the_local_loss_only() -> None:
    given = batch(GROUPS["2 + 8"])
    found = {
        setting: evaluate(given, ObjectiveConfig.model_validate({"setting": setting}))
        for setting in ("vanilla", "similarity", "geometric")
    }
    assert len({losses.global_loss.item() for losses in found.values()}) == 1
    assert found["similarity"].local_loss != found["geometric"].local_loss
    assert found["similarity"].matched == 1
    assert 0 < found["geometric"].matched < 1


def test_gradients_reach_every_students_output_and_nothing_else() -> None:
    given = batch(GROUPS["two sizes of local crops"])

    def leaves(outputs: ViewOutputs) -> ViewOutputs:
        z_bar, z = (tensor.detach().requires_grad_() for tensor in (outputs.z_bar, outputs.z))
        return ViewOutputs(z_bar, z, {level: u.detach().requires_grad_() for level, u in outputs.u.items()})

    student, teacher = [leaves(group) for group in given.student], leaves(given.teacher)
    heads = {
        level: HeadPair(*(tensor.detach().requires_grad_() for tensor in pair[:3]), *pair[3:])
        for level, pair in given.heads.items()
    }
    evaluate(given._replace(student=student, teacher=teacher, heads=heads), ObjectiveConfig()).total.backward()
    for group in student:
        assert group.z.grad is None
        assert all(u.grad is not None for u in group.u.values())
    assert all(tensor.grad is None for tensor in (teacher.z, *teacher.u.values()))
    for pair in heads.values():
        assert [tensor.grad is not None for tensor in pair[:3]] == [True, False, False]


def test_a_batch_is_the_mean_of_its_images() -> None:
    given = batch(GROUPS["2 + 8"])
    config = ObjectiveConfig()

    def only(b: int) -> Batch:
        def cut(outputs: ViewOutputs) -> ViewOutputs:
            u = {level: rows[b : b + 1] for level, rows in outputs.u.items()}
            return ViewOutputs(outputs.z_bar[b : b + 1], outputs.z[b : b + 1], u)

        return given._replace(
            student=[cut(group) for group in given.student], teacher=cut(given.teacher), geo=given.geo[b : b + 1]
        )

    alone = [torch.stack(evaluate(only(b), config)[:3]) for b in range(3)]
    torch.testing.assert_close(torch.stack(evaluate(given, config)[:3]), torch.stack(alone).mean(0), rtol=1e-13, atol=0)
