import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from glsd.evaluation.logistic import (
    Layer,
    QuickLinear,
    fit,
    logistic_regression,
    objective,
    standardization,
    stratified_tenth,
)


def classes_apart(num: int, dim: int, num_classes: int, seed: int, apart: float = 1.0) -> tuple[Tensor, Tensor]:
    """Representations around a centre for each class, with dimensions that are correlated and of many scales."""
    fixed, generator = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)
    centres = apart * torch.randn(num_classes, dim, generator=fixed)
    mixing = torch.randn(dim, dim, generator=fixed) * torch.logspace(0, -2, dim)[:, None]
    labels = torch.randint(num_classes, (num,), generator=generator)
    return (centres[labels] + torch.randn(num, dim, generator=generator)) @ mixing + 5, labels


def nothing_learned(num_classes: int, dim: int) -> Layer:
    return Layer(torch.zeros(num_classes, dim).double(), torch.zeros(num_classes).double())


def fitted(features: Tensor, labels: Tensor, num_classes: int, strength: float) -> tuple[Tensor, Tensor, Layer]:
    """(standardised features, rows, layer): a fit to all of them."""
    rows, scaling = torch.arange(len(labels)), standardization(features)
    layer = fit(features, labels, rows, scaling, strength, nothing_learned(num_classes, features.shape[1]))
    standardised = (features.double() - features.double().mean(0)) / features.double().std(0, correction=0)
    return standardised, rows, layer


def autograd(standardised: Tensor, labels: Tensor, strength: float, layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    """The objective and its gradients, with nothing of ours in it."""
    weight, bias = (part.clone().requires_grad_() for part in layer)
    value = functional.cross_entropy(standardised @ weight.T + bias, labels) + strength / 2 * weight.square().sum()
    return value.detach(), *torch.autograd.grad(value, (weight, bias))


def test_value_and_gradient_are_those_of_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glsd.evaluation.logistic._ROWS", 16)
    features, labels = classes_apart(50, 6, 4, 0)
    standardised = (features.double() - features.double().mean(0)) / features.double().std(0, correction=0)
    generator = torch.Generator().manual_seed(1)
    layer = Layer(*(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((4, 6), (4,))))
    rows = torch.tensor([*range(3, 40), 48])
    value, gradient = objective(features, labels, rows, standardization(features), 0.3, layer)
    expected = autograd(standardised[rows], labels[rows], 0.3, layer)
    torch.testing.assert_close((value, *gradient), expected)


@pytest.mark.parametrize("strength", [10.0, 1e-2, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_gradient_vanishes_at_a_fit(strength: float, dtype: torch.dtype) -> None:
    features, labels = classes_apart(400, 12, 5, 0)
    standardised, _, layer = fitted(features.to(dtype), labels, 5, strength)
    _, *gradients = autograd(standardised, labels, strength, layer)
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
    _, _, layer = fitted(torch.tensor(values)[:, None], torch.tensor(labels), 2, strength)
    assert float(layer.weight[1, 0] - layer.weight[0, 0]) == pytest.approx(slope, abs=1e-3)
    assert float(layer.bias[1] - layer.bias[0]) == pytest.approx(intercept, abs=1e-3)


def test_a_fit_does_not_depend_on_its_start() -> None:
    features, labels = classes_apart(200, 8, 3, 0)
    scaling, rows = standardization(features), torch.arange(200)
    far = Layer(torch.ones(3, 8).double(), torch.tensor([1.0, -2.0, 0.0]).double())
    one, other = (fit(features, labels, rows, scaling, 1e-2, start) for start in (nothing_learned(3, 8), far))
    torch.testing.assert_close(one.weight, other.weight, atol=1e-3, rtol=0)
    torch.testing.assert_close(one.bias - one.bias.mean(), other.bias - other.bias.mean(), atol=1e-3, rtol=0)


def test_classes_that_are_apart_are_learned_and_noise_is_not() -> None:
    train, test = classes_apart(200, 10, 4, 0, apart=5), classes_apart(60, 10, 4, 1, apart=5)
    apart = logistic_regression(*train, *test, 4)
    assert (apart.top1, apart.top5, apart.num_top) == (1.0, 1.0, 4)
    shuffled = test[1][torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    assert logistic_regression(*train, test[0], shuffled, 4).top1 < 0.5


def test_accuracies_and_choice_are_those_of_the_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glsd.evaluation.logistic._STRENGTHS", (1.0, 1e-1, 1e-3))
    (features, labels), (test_features, test_labels) = (classes_apart(240, 8, 7, seed, 0.7) for seed in (0, 1))
    found = logistic_regression(features, labels, test_features, test_labels, 7, seed=5)
    held_out, scaling = stratified_tenth(labels, 5), standardization(features)
    rows = torch.arange(len(labels))

    def logits(some: Tensor, chosen: Tensor, strength: float) -> Tensor:
        layer = fit(features, labels, chosen, scaling, strength, nothing_learned(7, 8))
        return (some.double() - features.double().mean(0)) / features.double().std(0, correction=0) @ layer.weight.T + (
            layer.bias
        )

    validation = [
        (strength, float((logits(features, rows[~held_out], strength).argmax(1) == labels)[held_out].double().mean()))
        for strength in (1.0, 1e-1, 1e-3)
    ]
    assert found.validation == validation
    strength = max(validation, key=lambda pair: (pair[1], pair[0]))[0]
    ranking = logits(test_features, rows, strength).argsort(1, descending=True)
    right = (ranking == test_labels[:, None]).double().mean(0)
    expected = QuickLinear(float(right[0]), float(right[:5].sum()), 5, strength, validation, 240, 240)
    assert found[3:] == expected[3:]
    assert found[:3] == pytest.approx(expected[:3])


def test_the_share_of_the_fits_that_are_done_is_told_before_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glsd.evaluation.logistic._STRENGTHS", (1.0, 1e-1, 1e-3))
    told = list[float]()
    features, labels = classes_apart(40, 3, 2, 0)
    logistic_regression(features, labels, features, labels, 2, progress=told.append)
    assert told == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_layer_that_is_fitted_on_the_gpu_is_that_of_the_cpu() -> None:
    (features, labels), test = (classes_apart(400, 12, 5, seed, 0.7) for seed in (0, 1))
    on_gpu, on_cpu = (logistic_regression(some, labels, *test, 5) for some in (features.cuda(), features))
    assert on_gpu.strength == on_cpu.strength
    assert on_gpu[:2] == pytest.approx(on_cpu[:2], abs=0.01)


def test_the_choice_never_sees_the_test_images() -> None:
    train = classes_apart(150, 6, 3, 0, apart=0.5)
    with_labels, without = (
        logistic_regression(*train, test, test_labels, 3)
        for test, test_labels in (classes_apart(90, 6, 3, 1), (torch.zeros(7, 6), torch.zeros(7, dtype=torch.long)))
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
    (train, labels), (test, test_labels) = (classes_apart(120, 5, 3, seed, 0.5) for seed in (0, 1))
    dead, wild = torch.full((120, 1), 0.1), torch.linspace(-1e6, 1e6, 120)[:, None]
    without = logistic_regression(train, labels, test, test_labels, 3)
    assert (
        logistic_regression(torch.cat([train, dead], 1), labels, torch.cat([test, wild], 1), test_labels, 3) == without
    )


def test_two_training_images_and_one_test_image_are_enough() -> None:
    features = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    found = logistic_regression(features, torch.tensor([0, 1]), features[:1], torch.tensor([0]), 2)
    assert (found.num_top, found.top5, found.num_train, found.num_test) == (2, 1.0, 2, 1)


def test_what_cannot_be_fitted_or_tested_is_named() -> None:
    features, labels = classes_apart(20, 3, 2, 0)
    with pytest.raises(ValueError, match="two training images or more; there are 1"):
        logistic_regression(features[:1], labels[:1], features, labels, 2)
    with pytest.raises(ValueError, match="test_labels are empty"):
        logistic_regression(features, labels, features[:0], labels[:0], 2)
    with pytest.raises(ValueError, match=r"^labels are in \[0, 1\], but 1 classes"):
        logistic_regression(features, labels, features, torch.zeros_like(labels), 1)
    with pytest.raises(ValueError, match="representation of the training images is not finite"):
        logistic_regression(features.index_fill(0, torch.tensor([4]), math.nan), labels, features, labels, 2)
