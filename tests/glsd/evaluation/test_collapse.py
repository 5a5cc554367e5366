"""Collapse (Sec. 4.6): each measure against plain loops, and the verdict on teachers that training has collapsed."""

import copy
import math
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glsd.encoder.encoder import build_encoder, embed, untrained_encoder
from glsd.evaluation.collapse import (
    collapse_metrics,
    collapse_report,
    effective_rank,
    encoder_collapse,
    feature_std,
    k_star_usage,
    output_entropy_and_information,
)
from glsd.evaluation.verdict import CollapseWatch, collapse_verdict
from glsd.training.batch import to_device
from glsd.training.loop import Metrics
from glsd.training.state import TrainState, initial_state
from tests.glsd.evaluation.collapsing import CENTERING_OFF, CPU, pictures, texture_units, textures_config, trained
from tests.glsd.training.small import small_config, units


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_entropy(p: list[float]) -> float:
    return -sum(x * math.log(x) for x in p if x > 0)


def test_isotropic_features_have_standard_deviation_one_and_equal_ones_zero() -> None:
    assert feature_std(normal(4000, 50)).item() == pytest.approx(1, abs=0.01)
    assert feature_std(10 * torch.eye(3).repeat(1, 1)).item() == pytest.approx(1)
    assert feature_std(normal(1, 50).expand(9, 50)).item() < 1e-6
    # Unit vectors (1, 0) and (0.6, 0.8): their mean is (0.8, 0.4), and each is sqrt(0.04 + 0.16) away from it.
    assert feature_std(torch.tensor([[2.0, 0.0], [3.0, 4.0]])).item() == pytest.approx(math.sqrt(0.2 + 0.2))


def test_effective_rank_is_the_number_of_equally_strong_directions() -> None:
    assert effective_rank(torch.eye(7, 20)).item() == pytest.approx(7, rel=1e-5)
    assert effective_rank(normal(30, 1) * normal(1, 20)).item() == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.zeros(5, 4)).item() == 1.0
    # Singular values 3 and 1: exp of the entropy of (3/4, 1/4).
    assert effective_rank(torch.tensor([[3.0, 0.0], [0.0, 1.0]])).item() == pytest.approx(
        math.exp(plain_entropy([0.75, 0.25]))
    )


@settings(max_examples=20, deadline=None)
@given(num_locations=st.integers(2, 9), num_students=st.integers(1, 12), seed=st.integers(0, 999))
def test_k_star_usage_equals_counting(num_locations: int, num_students: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    k_star = torch.randint(num_locations, (3, num_students), generator=generator)
    entropies, distinct = [], []
    for row in k_star.tolist():
        shares = [row.count(j) / num_students for j in range(num_locations)]
        entropies.append(plain_entropy(shares) / math.log(num_locations))
        distinct.append(len(set(row)) / num_locations)
    found = k_star_usage(k_star, num_locations)
    assert [float(value) for value in found] == pytest.approx([sum(entropies) / 3, sum(distinct) / 3], abs=1e-6)


def test_matches_to_one_location_and_to_all_of_them_are_the_ends_of_the_usage() -> None:
    assert [float(v) for v in k_star_usage(torch.full((2, 49), 11), 49)] == pytest.approx([0, 1 / 49])
    assert [float(v) for v in k_star_usage(torch.randperm(49)[None], 49)] == pytest.approx([1, 1])


def test_output_entropy_and_information_equal_plain_sums() -> None:
    u, weight, center = normal(5, 3), normal(8, 3, seed=1), normal(8, seed=2)
    rows = []
    for row in u.tolist():
        scores = [sum(a * b for a, b in zip(row, w, strict=True)) for w in weight.tolist()]
        exponents = [math.exp((s - c) / 0.5) for s, c in zip(scores, center.tolist(), strict=True)]
        rows.append([e / sum(exponents) for e in exponents])
    entropy = sum(plain_entropy(p) for p in rows) / 5
    mean = [sum(column) / 5 for column in zip(*rows, strict=True)]
    found = output_entropy_and_information(u, weight, center, 0.5)
    assert found[0].item() == pytest.approx(entropy / math.log(8), rel=1e-4)
    assert found[1].item() == pytest.approx((plain_entropy(mean) - entropy) / math.log(5), rel=1e-4)


def test_one_prototype_for_all_and_uniform_outputs_are_both_without_information() -> None:
    u = torch.nn.functional.normalize(normal(6, 4), dim=-1)
    one = torch.zeros(10)
    one[3] = -1000
    sharp, uniform = (output_entropy_and_information(u, 1e-4 * normal(10, 4), c, 0.04) for c in (one, torch.zeros(10)))
    assert [float(v) for v in sharp] == pytest.approx([0, 0], abs=1e-4)
    assert [float(v) for v in uniform] == pytest.approx([1, 0], abs=1e-4)
    told_apart = output_entropy_and_information(torch.eye(6), torch.eye(6), torch.zeros(6), 0.01)
    assert [float(v) for v in told_apart] == pytest.approx([0, 1], abs=1e-4)


@pytest.fixture(scope="module")
def without_centring() -> tuple[TrainState, list[Metrics]]:
    return trained(textures_config(**CENTERING_OFF))


@pytest.fixture(scope="module")
def healthy() -> tuple[TrainState, list[Metrics]]:
    return trained(textures_config())


def verdicts(logged: list[Metrics], **overrides: object) -> list[float | None]:
    watch = CollapseWatch(textures_config(**overrides))
    return [watch.judge(metrics).get("collapsed") for metrics in logged]


@pytest.mark.slow
def test_a_teacher_collapsed_by_training_without_centring_is_found_and_a_healthy_one_is_not(
    without_centring: tuple[TrainState, list[Metrics]], healthy: tuple[TrainState, list[Metrics]]
) -> None:
    assert collapse_verdict(healthy[1][-1]).label == "healthy"
    label, reasons = collapse_verdict(without_centring[1][-1])
    assert label == "collapsed"
    assert any("h̄ gives all images nearly the same output" in reason for reason in reasons)
    assert without_centring[1][-1]["feature_std"] > 0  # and not because its tensors were constant


@pytest.mark.slow
def test_a_run_is_collapsed_once_that_has_lasted_for_an_epoch_and_three_readings(
    without_centring: tuple[TrainState, list[Metrics]], healthy: tuple[TrainState, list[Metrics]]
) -> None:
    assert set(verdicts(healthy[1])) == {None, 0.0}
    judged = verdicts(without_centring[1])
    assert judged[:2] == [None, None]  # the learning rate is still rising
    assert judged[-1] == 1.0
    first_bad = next(
        i for i, m in enumerate(without_centring[1]) if i >= 2 and collapse_verdict(m).label == "collapsed"
    )
    assert judged[2 : first_bad + 2] == [0.0] * first_bad


def test_one_healthy_reading_starts_the_count_anew() -> None:
    watch = CollapseWatch(textures_config(**{"optim.warmup_epochs": 0}))
    good, bad = ({"loss_global": 1.0, "information_global": value} for value in (0.5, 0.0))
    readings = [(1.5, bad), (2.5, bad), (2.6, good), (3.0, bad), (3.2, bad), (3.4, bad), (3.9, bad), (4.0, bad)]
    assert [watch.judge(m | {"epoch": epoch})["collapsed"] for epoch, m in readings] == [0, 0, 0, 0, 0, 0, 0, 1]


@pytest.mark.slow
def test_the_offline_report_finds_what_the_run_found(
    without_centring: tuple[TrainState, list[Metrics]], healthy: tuple[TrainState, list[Metrics]]
) -> None:
    images, found = pictures(20), {}
    for name, overrides, (state, _) in (("centring off", CENTERING_OFF, without_centring), ("healthy", {}, healthy)):
        saved = copy.deepcopy(state.state_dict())
        metrics, verdict = collapse_report(textures_config(**overrides), saved, images, range(20))
        assert all(math.isfinite(value) for value in metrics.values())
        assert 1 <= metrics["rank_me"] <= 20
        found[name] = metrics, verdict.label
    assert found["centring off"][1] == "collapsed"
    assert found["healthy"][1] == "healthy"
    assert found["centring off"][0]["loss_share"] < 0.05  # teacher and student agree on one prototype
    # Nabla_x f ~ 0: what is lost about the input is gone from the gradient.
    assert found["centring off"][0]["input_gradient_norm"] < found["healthy"][0]["input_gradient_norm"] / 10


def test_the_offline_report_does_not_depend_on_how_its_images_are_split_where_it_need_not() -> None:
    config = small_config()
    state = initial_state(config, CPU).state_dict()
    images, names = pictures(5), ("k_star_entropy", "k_star_distinct", "loss_share")
    whole = collapse_report(
        config.with_overrides({"data.unit_size": 4, "optim.batch_size": 4}), state, images[:4], range(4)
    )
    parts = [
        collapse_report(config, state, images[rows], range(rows.start, rows.stop))
        for rows in (slice(0, 2), slice(2, 4))
    ]
    for name in names:
        assert whole[0][name] == pytest.approx((parts[0][0][name] + parts[1][0][name]) / 2, rel=1e-4)


def test_of_the_images_of_a_report_one_is_kept_while_the_next_is_made() -> None:
    config = small_config(**{"data.unit_size": 4, "optim.batch_size": 4})
    encoder, images = untrained_encoder(config), pictures(6)
    asked_for = list[weakref.ref[np.ndarray]]()

    def arriving() -> Iterator[np.ndarray]:
        for picture in images:
            image = picture.copy()
            assert sum(reference() is not None for reference in asked_for) <= 1
            asked_for.append(weakref.ref(image))
            yield image
            del image

    state = initial_state(config, CPU).state_dict()
    assert collapse_report(config, state, arriving(), range(6)) == collapse_report(config, state, images, range(6))
    asked_for.clear()
    assert encoder_collapse(encoder, normal(6, 8), arriving()) == encoder_collapse(encoder, normal(6, 8), images)


def test_an_encoder_without_heads_is_judged_by_its_features() -> None:
    config = textures_config("test_convnext", **{"evaluation.resize": 64, "evaluation.crop": 64})
    encoder, images = untrained_encoder(config), pictures(4)
    metrics, verdict = encoder_collapse(encoder, normal(40, 8), images)
    assert set(metrics) == {"feature_std", "effective_rank", "rank_me", "k_star_entropy", "k_star_distinct"}
    assert metrics["rank_me"] == pytest.approx(1 + 7 * metrics["effective_rank"])
    assert verdict.label == "healthy"
    constant, verdict = encoder_collapse(encoder, 5 + 1e-4 * normal(40, 8), images)
    assert verdict.label == "collapsed"
    assert verdict.reasons[0].startswith(f"feature_std {constant['feature_std']:.2g} is below 0.01")
    # A backbone that says the same of every place: all locations match the first, and only the matching shows it.
    state = {name: torch.zeros_like(value) for name, value in encoder.backbone.state_dict().items()}
    metrics, verdict = encoder_collapse(build_encoder(config, state, "a file"), normal(40, 8), images)
    assert metrics["k_star_distinct"] == 1 / 4
    assert [reason.split()[0] for reason in verdict.reasons] == ["k_star_entropy"]


@pytest.mark.parametrize("num_images", [16, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_in_one_direction_are_a_collapse_however_few_they_are(num_images: int, dtype: torch.dtype) -> None:
    encoder = untrained_encoder(textures_config(**{"evaluation.resize": 64, "evaluation.crop": 64}))
    z_bar = (normal(num_images, 1) * normal(1, 512, seed=1)).to(dtype)
    metrics, verdict = encoder_collapse(encoder, z_bar, pictures(2))
    assert metrics["feature_std"] > 0.9  # they point both ways
    assert metrics["rank_me"] == pytest.approx(1, abs=0.15)
    assert [reason.split()[0] for reason in verdict.reasons] == ["effective_rank"]


@pytest.mark.parametrize("backbone", ["resnet18", "test_resnet", "test_vit"])
@pytest.mark.parametrize("num_images", [2, 8, 32])
def test_untrained_features_lie_in_several_directions_however_few_they_are(backbone: str, num_images: int) -> None:
    config = textures_config(backbone, **{"evaluation.resize": 64, "evaluation.crop": 64})
    encoder, images = untrained_encoder(config), pictures(num_images)
    z_bar = embed(encoder, [torch.from_numpy(np.stack([encoder.preprocess(image) for image in images]))])
    assert encoder_collapse(encoder, z_bar, images[:2])[1].label == "healthy"


def test_features_that_are_not_finite_are_a_collapse() -> None:
    encoder = untrained_encoder(textures_config(**{"evaluation.resize": 64, "evaluation.crop": 64}))
    _, (label, reasons) = encoder_collapse(encoder, torch.full((16, 8), torch.nan), pictures(2))
    assert label == "collapsed"
    assert "feature_std is nan: it is not finite" in reasons
    watch = CollapseWatch(textures_config(**{"optim.warmup_epochs": 0}))
    readings = [{"loss_global": 1.0, "feature_std": math.nan, "epoch": epoch} for epoch in (1.5, 2.0, 2.5)]
    assert [watch.judge(metrics)["collapsed"] for metrics in readings] == [0, 0, 1]


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_the_metrics_of_a_step_leave_the_teacher_and_the_random_numbers_as_they_were(backbone: str) -> None:
    config = small_config("similarity", backbone)
    state = initial_state(config, CPU)
    batch = to_device(next(units(config)), config.augment, CPU)
    before = copy.deepcopy(state.teacher.state_dict())
    torch.manual_seed(3)
    expected_random = torch.rand(1)
    torch.manual_seed(3)
    metrics = collapse_metrics(state.teacher, batch, state.centers, config, 0.04)
    assert torch.equal(torch.rand(1), expected_random)
    assert state.teacher.training
    assert all(torch.equal(value, before[name]) for name, value in state.teacher.state_dict().items())
    assert not any(value.requires_grad for value in metrics.values())
    again = collapse_metrics(state.teacher, batch, state.centers, config, 0.04)
    assert {name: float(value) for name, value in metrics.items()} == {k: float(v) for k, v in again.items()}


def test_a_vanilla_run_has_no_dense_head_to_measure() -> None:
    config = textures_config(setting="vanilla")
    state = initial_state(config, CPU)
    batch = to_device(next(texture_units(config)), config.augment, CPU)
    names = set(collapse_metrics(state.teacher, batch, state.centers, config, 0.04))
    assert {"entropy_global", "information_global"} < names
    assert not any("dense" in name for name in names)


def test_units_of_one_image_say_nothing_about_images() -> None:
    config = small_config(**{"data.unit_size": 1})
    state = initial_state(config, CPU)
    batch = to_device(next(units(config)), config.augment, CPU)
    names = set(collapse_metrics(state.teacher, batch, state.centers, config, 0.04))
    assert names == {"k_star_entropy", "k_star_distinct"}


def test_a_loss_of_ln_prototypes_is_a_collapse_where_the_outputs_are_not_known() -> None:
    assert collapse_verdict({"loss_share": 1.0004}).label == "collapsed"
    assert collapse_verdict({"loss_share": 0.97}).label == "healthy"
    assert collapse_verdict({"loss_share": 1.0004, "information_global": 0.3}).label == "healthy"
    assert collapse_verdict({}).label == "healthy"


def test_collapse_of_one_image_or_of_fewer_than_ids_is_an_error() -> None:
    config = small_config()
    with pytest.raises(ValueError, match="6 image_ids and fewer images"):
        collapse_report(config, initial_state(config, CPU).state_dict(), iter(pictures(5)), range(6))
    with pytest.raises(ValueError, match="two or more of them, not 1"):
        collapse_report(config, initial_state(config, CPU).state_dict(), pictures(1), [0])
