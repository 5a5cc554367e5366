from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glsd.losses.local_loss import local_representation_loss, matched_share
from glsd.losses.objective import geometric_matches, similarity_matches
from glsd.losses.outputs import HeadPair
from glsd.matching import Matches
from tests import oracles
from tests.glsd.losses.test_global_loss import TAU_S, TAU_T, unit

Grid = tuple[int, int]
Groups = Sequence[tuple[int, Grid]]  # (views, grid) of each group of equal crops, the globals first

GROUPS: dict[str, Groups] = {
    "2 + 8": ((2, (3, 3)), (8, (2, 2))),
    "N_L = 0": ((2, (3, 3)),),
    "two sizes of local crops": ((2, (4, 4)), (3, (2, 2)), (2, (1, 1))),
    "non-square grids": ((2, (4, 3)), (2, (1, 3))),
}


def boxes(seed: int, batch: int, views: int) -> Tensor:
    """W_geo of crops of a 120 x 120 image, as the augmentation gives it."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 60, (batch, views, 2), generator=generator)
    sides = torch.randint(20, 60, (batch, views, 2), generator=generator)
    flips = torch.randint(0, 4, (batch, views, 1), generator=generator)
    return torch.cat((corners, corners + sides, sides, flips), -1).float()


class Case:
    """Inputs of the local loss of one batch, with the teacher on the first `teacher_views` views."""

    def __init__(self, seed: int, batch: int, groups: Groups, teacher_views: int = 2) -> None:
        dim, feature_dim, prototypes = 5, 4, 9
        grid_t = groups[0][1]
        self.batch, self.groups, self.teacher_views = batch, groups, teacher_views
        self.geo = boxes(seed, batch, sum(views for views, _ in groups))
        self.geos = list(self.geo.split([views for views, _ in groups], dim=1))
        self.u_s = [unit(seed + g, batch, views, *grid, dim) for g, (views, grid) in enumerate(groups)]
        self.z_s = [unit(seed + 10 + g, batch, views, *grid, feature_dim) for g, (views, grid) in enumerate(groups)]
        self.u_t = unit(seed + 20, batch, teacher_views, *grid_t, dim)
        self.z_t = unit(seed + 21, batch, teacher_views, *grid_t, feature_dim)
        self.weight_s, self.weight_t = unit(seed + 22, prototypes, dim), unit(seed + 23, prototypes, dim)
        self.center = 0.1 * unit(seed + 24, prototypes)

    def matches(self, setting: str, threshold_scale: float | None = 1.0) -> list[Matches]:
        if setting == "similarity":
            return [similarity_matches(z, self.z_t) for z in self.z_s]
        geo_t, grid_t = self.geo[:, : self.teacher_views], self.groups[0][1]
        return [
            geometric_matches(geo, grid, geo_t, grid_t, threshold_scale)
            for geo, (_, grid) in zip(self.geos, self.groups, strict=True)
        ]

    def loss(self, matches: Sequence[Matches]) -> Tensor:
        heads = HeadPair(self.weight_s, self.weight_t, self.center, TAU_S, TAU_T)
        return local_representation_loss(self.u_s, self.u_t, matches, heads)

    def by_loops(self, setting: str) -> tuple[float, float]:
        """(Eq. 5, 7, 9 or 10 from Eq. 4 or 6 in the code's direction, share of kept matches)."""
        weight_s, weight_t, center = self.weight_s.tolist(), self.weight_t.tolist(), self.center.tolist()
        grid_t = self.groups[0][1]
        losses, kept = [], []
        for b in range(self.batch):
            pair_losses: list[list[float]] = []
            for t in range(self.teacher_views):
                p = [oracles.teacher_head(u, weight_t, center, TAU_T) for u in self.u_t[b, t].flatten(0, 1).tolist()]
                pair_losses.append([])
                view = 0
                for g, (views, grid) in enumerate(self.groups):
                    for v in range(views):
                        q = [oracles.student_head(u, weight_s, TAU_S) for u in self.u_s[g][b, v].flatten(0, 1).tolist()]
                        if setting == "similarity":
                            z_s, z_t = self.z_s[g][b, v].flatten(0, 1), self.z_t[b, t].flatten(0, 1)
                            k_star, keep = oracles.most_similar(z_s.tolist(), z_t.tolist()), [True] * len(q)
                        else:
                            geo_s, geo_t = self.geos[g][b, v].tolist(), self.geo[b, t].tolist()
                            e_s = [point for row in oracles.positions(geo_s, *grid) for point in row]
                            e_t = [point for row in oracles.positions(geo_t, *grid_t) for point in row]
                            nearest = oracles.nearest(e_s, e_t)
                            s = oracles.threshold(geo_s, grid, geo_t, grid_t)
                            k_star, keep = [k for k, _ in nearest], [d < s for _, d in nearest]
                        pair_losses[t].append(oracles.pair_loss_code(p, q, k_star, keep))
                        if view != t:
                            kept += keep
                        view += 1
            losses.append(oracles.local_loss(pair_losses))
        return sum(losses) / len(losses), sum(kept) / len(kept)


@pytest.mark.parametrize("setting", ["similarity", "geometric"])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS.keys())
def test_local_loss_with_multi_crop_is_equations_9_and_10(groups: Groups, setting: str) -> None:
    case = Case(0, batch=2, groups=groups)
    matches = case.matches(setting)
    expected, share = case.by_loops(setting)
    assert case.loss(matches).item() == pytest.approx(expected, rel=1e-12)
    assert matched_share(matches).item() == pytest.approx(share, rel=1e-6)


@pytest.mark.parametrize("setting", ["similarity", "geometric"])
def test_local_loss_where_the_teacher_sees_all_views_is_equations_5_and_7(setting: str) -> None:
    case = Case(1, batch=2, groups=((4, (3, 2)),), teacher_views=4)
    expected, share = case.by_loops(setting)
    matches = case.matches(setting)
    assert case.loss(matches).item() == pytest.approx(expected, rel=1e-12)
    assert matched_share(matches).item() == pytest.approx(share, rel=1e-6)


def test_both_directions_of_equation_6_agree_where_matches_are_one_to_one() -> None:
    """On identical grids of one crop each location finds its counterpart, whichever side looks."""
    case = Case(2, batch=1, groups=((2, (3, 3)),))
    case.geo = case.geo[:, :1].expand(-1, 2, -1)
    case.geos = [case.geo]
    p = [
        oracles.teacher_head(u, case.weight_t.tolist(), case.center.tolist(), TAU_T)
        for u in case.u_t[0, 0].flatten(0, 1).tolist()
    ]
    q = [oracles.student_head(u, case.weight_s.tolist(), TAU_S) for u in case.u_s[0][0, 1].flatten(0, 1).tolist()]
    k_star = case.matches("geometric")[0].k_star[0, 1, 0].tolist()
    keep = [True] * 9
    assert oracles.pair_loss_code(p, q, k_star, keep) == oracles.pair_loss_paper(p, q, k_star, keep)


def test_the_printed_direction_of_equation_6_weighs_a_local_crop_less() -> None:
    """A local crop of 1/9 of its global crop: all its locations are matched, but few of the teacher's."""
    geo_t = [0.0, 0.0, 90.0, 90.0, 224.0, 224.0, 0.0]
    geo_s = [30.0, 30.0, 60.0, 60.0, 96.0, 96.0, 0.0]
    e_t = [point for row in oracles.positions(geo_t, 7, 7) for point in row]
    e_s = [point for row in oracles.positions(geo_s, 3, 3) for point in row]
    s = oracles.threshold(geo_s, (3, 3), geo_t, (7, 7))
    student_looks = [d < s for _, d in oracles.nearest(e_s, e_t)]
    teacher_looks = [d < s for _, d in oracles.nearest(e_t, e_s)]
    assert sum(student_looks) / 9 == 1
    assert sum(teacher_looks) / 49 < 0.25
    one, half = [1.0, 0.0], [0.5, 0.5]  # every kept term is log 2
    k_s, k_t = [k for k, _ in oracles.nearest(e_s, e_t)], [k for k, _ in oracles.nearest(e_t, e_s)]
    code = oracles.pair_loss_code([one] * 49, [half] * 9, k_s, student_looks)
    paper = oracles.pair_loss_paper([one] * 49, [half] * 9, k_t, teacher_looks)
    assert code > 4 * paper


def test_the_mean_runs_over_all_locations_kept_or_not() -> None:
    case = Case(3, batch=1, groups=((2, (2, 2)),))
    everything = case.matches("geometric", threshold_scale=None)[0]
    terms = []
    for k in range(4):
        keep = torch.zeros_like(everything.keep)
        keep[..., k] = True
        terms.append(case.loss([everything._replace(keep=keep)]))
    torch.testing.assert_close(torch.stack(terms).sum(), case.loss([everything]), rtol=1e-13, atol=0)


def test_nothing_kept_is_a_loss_of_exactly_zero_without_gradient() -> None:
    case = Case(4, batch=2, groups=GROUPS["2 + 8"])
    nothing = [match._replace(keep=torch.zeros_like(match.keep)) for match in case.matches("geometric")]
    for u in (*case.u_s, case.weight_s):
        u.requires_grad_()
    loss = case.loss(nothing)
    loss.backward()
    assert loss.item() == 0
    assert all(u.grad is not None and not u.grad.any() for u in (*case.u_s, case.weight_s))
    assert matched_share(nothing).item() == 0


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**31), st.permutations(range(3)))
def test_order_of_images_does_not_change_the_mean(seed: int, order: list[int]) -> None:
    case = Case(seed % 10_000, batch=3, groups=GROUPS["two sizes of local crops"])
    before = case.loss(case.matches("geometric"))
    case.geo, case.u_t = case.geo[order], case.u_t[order]
    case.geos, case.u_s = [geo[order] for geo in case.geos], [u[order] for u in case.u_s]
    torch.testing.assert_close(case.loss(case.matches("geometric")), before, rtol=1e-13, atol=0)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000))
def test_flipping_a_crop_with_its_features_does_not_change_the_loss(seed: int) -> None:
    case = Case(seed, batch=2, groups=GROUPS["2 + 8"])
    before = case.loss(case.matches("geometric"))
    flipped_geo = case.geo.clone()
    flipped_geo[..., 6] = torch.where(case.geo[..., 6] % 2 == 1, case.geo[..., 6] - 1, case.geo[..., 6] + 1)
    case.geo, case.geos = flipped_geo, list(flipped_geo.split([views for views, _ in case.groups], dim=1))
    case.u_s, case.u_t = [u.flip(3) for u in case.u_s], case.u_t.flip(3)
    after = case.loss(case.matches("geometric"))
    # Where two teacher locations are equally near, the flip changes which comes first.
    mean_gap = abs(after - before) / before
    assert mean_gap < 1e-12 or _has_ties(case)


def _has_ties(case: Case) -> bool:
    grid_t = case.groups[0][1]
    for b in range(case.batch):
        for t in range(2):
            e_t = [p for row in oracles.positions(case.geo[b, t].tolist(), *grid_t) for p in row]
            for g, (views, grid) in enumerate(case.groups):
                for v in range(views):
                    e_s = [p for row in oracles.positions(case.geos[g][b, v].tolist(), *grid) for p in row]
                    forward = oracles.nearest(e_s, e_t)
                    backward = oracles.nearest(e_s, e_t[::-1])
                    if any(k != len(e_t) - 1 - j for (k, _), (j, _) in zip(forward, backward, strict=True)):
                        return True
    return False


def test_no_gradient_reaches_the_teacher_or_passes_through_matches() -> None:
    case = Case(5, batch=2, groups=GROUPS["2 + 8"])
    for tensor in (*case.z_s, case.z_t, case.u_t, case.weight_t, case.center, *case.u_s, case.weight_s):
        tensor.requires_grad_()
    case.loss(case.matches("similarity")).backward()
    for tensor in (*case.z_s, case.z_t, case.u_t, case.weight_t, case.center):
        assert tensor.grad is None
    for tensor in (*case.u_s, case.weight_s):
        assert tensor.grad is not None


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS.keys())
def test_similarity_matches_of_all_pairs_are_those_of_each_pair(groups: Groups) -> None:
    case = Case(6, batch=2, groups=groups)
    for z, match in zip(case.z_s, case.matches("similarity"), strict=True):
        for b in range(2):
            for v in range(z.shape[1]):
                for t in range(2):
                    expected = oracles.most_similar(
                        z[b, v].flatten(0, 1).tolist(), case.z_t[b, t].flatten(0, 1).tolist()
                    )
                    assert match.k_star[b, v, t].tolist() == expected


def test_a_larger_threshold_scale_keeps_at_least_as_many_matches() -> None:
    case = Case(7, batch=4, groups=GROUPS["2 + 8"])
    shares = [matched_share(case.matches("geometric", scale)).item() for scale in (0.25, 0.5, 1.0, 2.0, None)]
    assert shares == sorted(shares)
    assert shares[0] < shares[2] < shares[-1] == 1
