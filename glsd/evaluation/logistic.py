"""Logistic regression on representations that are there already: the quick form of the linear evaluation (Sec. 4.3).

It minimises the mean cross entropy of the training images plus lambda / 2 times the squared weights of the layer (not
its biases), on representations whose dimensions are standardised, by L-BFGS in float64. Correlated dimensions would
make that slow. So the layer is sought in the basis of the representations' principal components, each scaled by the
root of its inverse curvature, about variance / classes + lambda: some tens of iterations in place of hundreds, the
minimum being the same. Only the weakest strengths may not get there in the 200 iterations that a fit has, where classes
are apart and weights would grow for long. Representations are read some thousands at a time and may be in half
precision.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from glsd.evaluation.linear import LinearAccuracy, accuracy_of_ranks, check_labels, label_ranks

_STRENGTHS = tuple(10.0**exponent for exponent in range(1, -7, -1))  # falling: a fit starts where the last one ended
_HELD_OUT = 10  # every tenth training image chooses the strength
_ROWS = 1 << 13  # representations at once, in float64 and as logits
_MAX_ITERATIONS = 200
_HISTORY = 10  # layers, twice, that L-BFGS remembers
_GRADIENT = 1e-5  # largest entry of the scaled gradient at which a fit is done


class QuickLinear(NamedTuple):
    """Accuracies on the test images, as shares in [0, 1], and how the regularisation was chosen."""

    top1: float
    top5: float
    num_top: int
    """min(5, number of classes)."""
    strength: float
    """The chosen lambda."""
    validation: list[tuple[float, float]]
    """(lambda, top-1 on the held-out training images) of each lambda."""
    num_train: int
    num_test: int


class Scaling(NamedTuple):
    """What standardises representations, and the principal components of the standardised ones."""

    mean: Float[Tensor, " dim"]
    inverse_deviation: Float[Tensor, " dim"]
    """0 for a dimension in which all training images are equal, up to float32."""
    basis: Float[Tensor, "dim dim"]
    """Columns are the components."""
    variance: Float[Tensor, " dim"]
    """Variance along each component."""


class Layer(NamedTuple):
    """A linear layer."""

    weight: Float[Tensor, "classes dim"]
    bias: Float[Tensor, " classes"]

    def logits(self, features: Float[Tensor, "images dim"]) -> Float[Tensor, "images classes"]:
        """In the precision of the layer and on its device."""
        return features.to(self.weight) @ self.weight.T + self.bias

    def unstandardised(self, scaling: Scaling) -> "Layer":
        """The layer that does to representations what this one does to standardised ones."""
        weight = self.weight * scaling.inverse_deviation
        return Layer(weight, self.bias - weight @ scaling.mean)


def logistic_regression(
    features: Float[Tensor, "train dim"],
    labels: Int64[Tensor, " train"],
    test_features: Float[Tensor, "test dim"],
    test_labels: Int64[Tensor, " test"],
    num_classes: int,
    seed: int = 0,
    progress: Callable[[float], object] = lambda _: None,
) -> QuickLinear:
    """Accuracy of logistic regression whose regularisation is chosen on a tenth of the training images.

    A tenth of every class, keyed by `seed`, is held out; the strength whose fit to the others gets most of it right
    (of equal ones the largest) is the strength of a fit to all training images, which is tested. Nothing but the last
    count sees the test images. Computed on the device of `features`; `progress` is told the share of the fits that are
    done.

    Raises:
        ValueError: fewer than two training images, no test image, a label that is not in [0, num_classes), or a
            representation that is not finite.
    """
    check_labels("labels", labels, num_classes)
    check_labels("test_labels", test_labels, num_classes)
    if len(labels) < 2:
        raise ValueError(f"logistic regression needs two training images or more; there are {len(labels)}")
    labels, test_labels = labels.to(features.device), test_labels.to(features.device)
    scaling = standardization(features)
    held_out = stratified_tenth(labels, seed)
    fitted = (~held_out).nonzero()[:, 0]

    layers: list[Layer] = []
    validation: list[tuple[float, float]] = []
    start = Layer(scaling.mean.new_zeros(num_classes, features.shape[1]), scaling.mean.new_zeros(num_classes))
    for strength in _STRENGTHS:
        progress(len(layers) / (len(_STRENGTHS) + 1))
        start = fit(features, labels, fitted, scaling, strength, start)
        layers.append(start)
        validation.append((strength, _accuracy(start, scaling, features[held_out], labels[held_out]).top1))
    best = max(range(len(validation)), key=lambda place: validation[place][1])  # the first of equal ones
    strength = validation[best][0]
    everyone = torch.arange(len(labels), device=labels.device)
    progress(len(layers) / (len(_STRENGTHS) + 1))
    layer = fit(features, labels, everyone, scaling, strength, layers[best])
    accuracy = _accuracy(layer, scaling, test_features, test_labels)
    return QuickLinear(*accuracy, strength, validation, len(labels), len(test_labels))


def fit(
    features: Float[Tensor, "images dim"],
    labels: Int64[Tensor, " images"],
    rows: Int64[Tensor, " rows"],
    scaling: Scaling,
    strength: float,
    start: Layer,
) -> Layer:
    """The layer of least `objective` on these rows, sought from `start`."""
    scale = (scaling.variance / len(start.bias) + strength).rsqrt()
    coordinates = (start.weight @ scaling.basis / scale).requires_grad_()  # (C, D) in the scaled components
    bias = start.bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [coordinates, bias],
        max_iter=_MAX_ITERATIONS,
        tolerance_grad=_GRADIENT,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )

    @torch.no_grad()
    def closure() -> Tensor:
        value, gradient = objective(features, labels, rows, scaling, strength, layer())
        coordinates.grad, bias.grad = gradient.weight @ scaling.basis * scale, gradient.bias
        return value

    def layer() -> Layer:
        return Layer((coordinates * scale) @ scaling.basis.T, bias.detach())

    optimizer.step(closure)
    with torch.no_grad():
        return layer()


def objective(
    features: Float[Tensor, "images dim"],
    labels: Int64[Tensor, " images"],
    rows: Int64[Tensor, " rows"],
    scaling: Scaling,
    strength: float,
    layer: Layer,
) -> tuple[Float[Tensor, ""], Layer]:
    """Mean over the rows of -log softmax(W x + b)[label], x standardised, plus strength / 2 |W|^2; and its gradient."""
    plain = layer.unstandardised(scaling)  # so that no tile is standardised
    value = strength / 2 * layer.weight.square().sum()
    plain_gradient = Layer(torch.zeros_like(layer.weight), torch.zeros_like(layer.bias))
    for some in rows.split(_ROWS):
        x, y = features[some].to(layer.weight), labels[some, None]
        log_p = plain.logits(x).log_softmax(1)
        value -= log_p.gather(1, y).sum() / len(rows)
        residual = log_p.exp().scatter_add_(1, y, log_p.new_full(y.shape, -1.0)) / len(rows)  # p - one-hot
        plain_gradient.weight.addmm_(residual.T, x)
        plain_gradient.bias.add_(residual.sum(0))
    centred = plain_gradient.weight - plain_gradient.bias[:, None] * scaling.mean
    return value, Layer(centred * scaling.inverse_deviation + strength * layer.weight, plain_gradient.bias)


def standardization(features: Float[Tensor, "images dim"]) -> Scaling:
    """Mean, deviation and principal components of representations.

    Raises:
        ValueError: one is not finite.
    """
    tiles = features.split(_ROWS)
    mean = sum((tile.double().sum(0) for tile in tiles), torch.zeros(())) / len(features)
    covariance = sum(((c := tile.double() - mean).T @ c for tile in tiles), torch.zeros(())) / len(features)
    if not bool(covariance.isfinite().all()):
        raise ValueError("a representation of the training images is not finite")
    deviation = covariance.diagonal().sqrt()
    varies = deviation > torch.finfo(torch.float32).eps * mean.abs()
    inverse_deviation = torch.where(varies, 1 / deviation, 0.0)
    variance, basis = torch.linalg.eigh(covariance * inverse_deviation * inverse_deviation[:, None])
    return Scaling(mean, inverse_deviation, basis, variance.clamp_min(0))


def stratified_tenth(labels: Int64[Tensor, " images"], seed: int) -> Bool[Tensor, " images"]:
    """A tenth of every class, rounded up for some classes and down for others; at least one image in all."""
    generator = np.random.default_rng([seed, len(labels)])
    shuffled = torch.from_numpy(generator.permutation(len(labels))).to(labels.device)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    held_out = torch.zeros_like(labels, dtype=torch.bool)
    held_out[by_class[int(generator.integers(min(_HELD_OUT, len(labels)))) :: _HELD_OUT]] = True
    return held_out


def _accuracy(
    layer: Layer, scaling: Scaling, features: Float[Tensor, "images dim"], labels: Int64[Tensor, " images"]
) -> LinearAccuracy:
    plain = layer.unstandardised(scaling)
    tiles = zip(features.split(_ROWS), labels.split(_ROWS), strict=True)
    return accuracy_of_ranks(torch.cat([label_ranks(plain.logits(x), y) for x, y in tiles]), len(layer.bias))
