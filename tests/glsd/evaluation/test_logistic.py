import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from glsd.evaluation.knn import Labelled
from glsd.evaluation.logistic import Layer, fits, logistic_regression, standardised, stratified_tenth


def classes_apart(num: int, dim: int, num_classes: int, seed: int, apart: float = 1.0) -> Labelled:
    """Representations around a centre for each class, with dimensions that are correlated and of many scales."""
    fixed, generator = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)
    centres = apart * torch.randn(num_classes, dim, generator=fixed)
    mixing = torch.randn(dim, dim, generator=fixed) * torch.logspace(0, -2, dim)[:, None]
    labels = torch.randint(num_classes, (num,), generator=generator)
    return Labelled((centres[labels] + torch.randn(num, dim, generator=generator)) @ mixing + 5, labels)


def fitted(features: Tensor, labels: Tensor, num_classes: int, strength: float) -> tuple[Tensor, Layer]:
    """(standardised features, layer): a fit to all of them."""
    x = (features.double() - features.double().mean(0)) / features.double().std(0, correction=0)
    (layer,) = fits(x, labels, [strength], num_classes)
    return x, layer


def autograd(x: Tensor, labels: Tensor, strength: float, layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    """The objective and its gradients, with nothing of ours in it."""
    weight, bias = (part.clone().requires_grad_() for part in layer)
    value = functional.cross_entropy(x @ weight.T + bias, labels) + strength / 2 * weight.square().sum()
    return value.detach(), *torch.autograd.grad(value, (weight, bias))


def test_representations_are_standardised_by_the_training_images() -> None:
    (features, _), (test_features, _) = (classes_apart(50, 6, 4, seed) for seed in (0, 1))
    mean, deviation = features.double().mean(0), features.double().std(0, correction=0)
    found = standardised(features, test_features)
    torch.testing.assert_close(found, tuple((some.double() - mean) / deviation for some in (features, test_features)))


@pytest.mark.parametrize("strength", [10.0, 1e-2, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_gradient_vanishes_at_a_fit(strength: float, dtype: torch.dtype) -> None:
    features, labels = classes_apart(400, 12, 5, 0)
    x, layer = fitted(features.to(dtype), labels, 5, strength)
    _, *gradients = autograd(x, labels, strength, layer)
    assert max(float(gradient.abs().max()) for gradient in gradients) < 3e-5


@pytest.mark.parametrize("strength", [1.0, 1e-3])
def test_two_classes_and_one_dimension_are_newtons_logistic_regression(strength: float) -> None:
    values = [0.3, -1.2, 2.0, 0.1, 1.7, -0.4, 0.9, -2.2, 0.2]
    labels = [1, 0, 1, 0, 1, 1, 0, 0, 1]
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    # Of two classes the penalised weights are opposite, so one slope u = 2 w has the penalty 2 lambda / 2 (u / 2)^2.
    slope = intercept = 0.0
    for _ in range(50):
        gradient = [strength / 2 * slope, 0.0]
        hessian = [[strength / 2, 0.0], [0.0, 0.0]]
        for value, label in zip(values, labels, strict=True):
            x = ((value - mean) / deviation, 1.0)
            p = 1 / (1 + math.exp(-(slope * x[0] + intercept)))
            for a in range(2):
                gradient[a] += (p - label) * x[a] / len(values)
                for b in range(2):
                    hessian[a][b] += p * (1 - p) * x[a] * x[b] / len(values)
        (h00, h01), (_, h11) = hessian
        determinant = h00 * h11 - h01 * h01
        slope -= (h11 * gradient[0] - h01 * gradient[1]) / determinant
        intercept -= (h00 * gradient[1] - h01 * gradient[0]) / determinant
    _, layer = fitted(torch.tensor(values)[:, None], torch.tensor(labels), 2, strength)
    assert float(layer.weight[1, 0] - layer.weight[0, 0]) == pytest.approx(slope, abs=1e-3)
    assert float(layer.bias[1] - layer.bias[0]) == pytest.approx(intercept, abs=1e-3)


def test_a_fit_does_not_depend_on_the_one_before() -> None:
    x, alone = fitted(*classes_apart(200, 8, 3, 0), 3, 1e-2)
    *_, after_others = fits(x, classes_apart(200, 8, 3, 0).labels, [1e-4, 10.0, 1e-2], 3)
    torch.testing.assert_close(alone.weight, after_others.weight, atol=1e-3, rtol=0)
    torch.testing.assert_close(alone.bias, after_others.bias, atol=1e-3, rtol=0)


def test_a_class_without_a_training_image_is_behind_all_others() -> None:
    features, labels = classes_apart(60, 4, 3, 0)
    for present in ([0], [1, 3], [0, 2, 3]):
        some = torch.tensor([present[label % len(present)] for label in labels.tolist()])
        x, layer = fitted(features, some, 4, 1e-2)
        order = layer.logits(x).argsort(1, descending=True)
        assert set(order[:, : len(present)].flatten().tolist()) == set(present)


def test_classes_that_are_apart_are_learned_and_noise_is_not() -> None:
    train, test = classes_apart(200, 10, 4, 0, apart=5), classes_apart(60, 10, 4, 1, apart=5)
    apart = logistic_regression(train, test, 4)
    assert (apart.top1, apart.top5, apart.num_top) == (1.0, 1.0, 4)
    shuffled = test.labels[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    assert logistic_regression(train, test._replace(labels=shuffled), 4).top1 < 0.5


def test_accuracies_and_choice_are_those_of_the_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glsd.evaluation.logistic._STRENGTHS", (1.0, 1e-1, 1e-3))
    train, test = (classes_apart(240, 8, 7, seed, 0.7) for seed in (0, 1))
    found = logistic_regression(train, test, 7, seed=5)
    labels, held_out, rows = train.labels, stratified_tenth(train.labels, 5), torch.arange(240)
    x, test_x = standardised(train.features, test.features)

    def logits(some: Tensor, chosen: Tensor, strength: float) -> Tensor:
        (layer,) = fits(x[chosen], labels[chosen], [strength], 7)
        return some @ layer.weight.T + layer.bias

    validation = [
        (strength, float((logits(x, rows[~held_out], strength).argmax(1) == labels)[held_out].double().mean()))
        for strength in (1.0, 1e-1, 1e-3)
    ]
    assert found.validation == validation
    strength = max(validation, key=lambda pair: (pair[1], pair[0]))[0]
    ranking = logits(test_x, rows, strength).argsort(1, descending=True)
    right = (ranking == test.labels[:, None]).double().mean(0)
    assert (found.strength, found.num_top, found.num_train, found.num_test) == (strength, 5, 240, 240)
    assert (found.top1, found.top5) == pytest.approx((float(right[0]), float(right[:5].sum())))


def test_the_share_of_the_fits_that_are_done_is_told_before_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glsd.evaluation.logistic._STRENGTHS", (1.0, 1e-1, 1e-3))
    told = list[float]()
    some = classes_apart(40, 3, 2, 0)
    logistic_regression(some, some, 2, progress=told.append)
    assert told == [0.0, 0.25, 0.5, 0.75]


def test_the_choice_never_sees_the_test_images() -> None:
    train = classes_apart(150, 6, 3, 0, apart=0.5)
    with_labels, without = (
        logistic_regression(train, test, 3)
        for test in (classes_apart(90, 6, 3, 1), Labelled(torch.zeros(7, 6), torch.zeros(7, dtype=torch.long)))
    )
    assert (with_labels.strength, with_labels.validation) == (without.strength, without.validation)


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(0, 45), min_size=1, max_size=6).filter(any), seed=st.integers(0, 99))
def test_a_tenth_of_every_class_is_held_out(counts: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    labels = labels[torch.randperm(len(labels), generator=generator)]
    held_out = stratified_tenth(labels, seed)
    assert held_out.any()
    for label, count in enumerate(counts):
        assert count // 10 <= int(held_out[labels == label].sum()) <= -(-count // 10)
    assert torch.equal(held_out, stratified_tenth(labels, seed))


def test_the_held_out_images_depend_on_the_seed() -> None:
    labels = torch.arange(200) % 4
    assert len({tuple(stratified_tenth(labels, seed).nonzero().flatten().tolist()) for seed in range(5)}) == 5


def test_a_dimension_in_which_all_training_images_are_equal_plays_no_part() -> None:
    train, test = (classes_apart(120, 5, 3, seed, 0.5) for seed in (0, 1))
    dead, wild = torch.full((120, 1), 0.1), torch.linspace(-1e6, 1e6, 120)[:, None]
    with_dead, with_wild = (
        side._replace(features=torch.cat([side.features, more], 1)) for side, more in ((train, dead), (test, wild))
    )
    assert logistic_regression(with_dead, with_wild, 3) == logistic_regression(train, test, 3)


def test_two_training_images_and_one_test_image_are_enough() -> None:
    features = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    train, test = Labelled(features, torch.tensor([0, 1])), Labelled(features[:1], torch.tensor([0]))
    found = logistic_regression(train, test, 2)
    assert (found.num_top, found.top5, found.num_train, found.num_test) == (2, 1.0, 2, 1)


def test_what_cannot_be_fitted_or_tested_is_named() -> None:
    some = classes_apart(20, 3, 2, 0)
    features, labels = some
    with pytest.raises(ValueError, match="two training images or more; there are 1"):
        logistic_regression(Labelled(features[:1], labels[:1]), some, 2)
    with pytest.raises(ValueError, match="test_labels are empty"):
        logistic_regression(some, Labelled(features[:0], labels[:0]), 2)
    with pytest.raises(ValueError, match=r"^labels are in \[0, 1\], but 1 classes"):
        logistic_regression(some, Labelled(features, torch.zeros_like(labels)), 1)
    with pytest.raises(ValueError, match="representation of the training images is not finite"):
        logistic_regression(Labelled(features.index_fill(0, torch.tensor([4]), math.nan), labels), some, 2)
