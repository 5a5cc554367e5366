"""Logistic regression on representations that are there already: the quick form of the linear evaluation (Sec. 4.3).

scikit-learn minimises the mean cross entropy of the training images plus lambda / 2 times the squared weights of the
layer (not its biases), on representations whose dimensions are standardised, in float64 on the CPU. Lambda is chosen on
training images that are held out. The weakest lambdas may not reach the minimum in the iterations that a fit has, where
classes are apart and weights would grow for long.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from glsd.evaluation.knn import Labelled, check_labels
from glsd.evaluation.linear import linear_accuracy
from glsd.runs.records import QuickLinearFound

_STRENGTHS = tuple(10.0**exponent for exponent in range(1, -7, -1))  # falling: a fit starts where the last one ended
_HELD_OUT = 10  # every tenth training image chooses the strength
_MAX_ITERATIONS = 1000
_GRADIENT = 1e-5  # largest entry of the gradient at which a fit is done


class Layer(NamedTuple):
    """A linear layer on standardised representations."""

    weight: Float64[Tensor, "classes dim"]
    bias: Float64[Tensor, " classes"]

    def logits(self, x: Float64[Tensor, "images dim"]) -> Float64[Tensor, "images classes"]:
        """Of standardised representations."""
        return x @ self.weight.T + self.bias


def logistic_regression(
    train: Labelled,
    test: Labelled,
    num_classes: int,
    seed: int = 0,
    progress: Callable[[float], object] = lambda _: None,
) -> QuickLinearFound:
    """Accuracy of logistic regression whose regularisation is chosen on a tenth of the training images.

    A tenth of every class, keyed by `seed`, is held out. The strength whose fit to the others gets most of it right (of
    equal ones the largest) is the strength of a fit to all training images, which is tested. Nothing but the last count
    sees the test images. `progress` is told the share of the fits that are done.

    Raises:
        ValueError: fewer than two training images, no test image, a label that is not in [0, num_classes), or a
            representation that is not finite.
    """
    check_labels("labels", train.labels, num_classes)
    check_labels("test_labels", test.labels, num_classes)
    if len(train.labels) < 2:
        raise ValueError(f"logistic regression needs two training images or more; there are {len(train.labels)}")
    x, test_x = standardised(train.features, test.features)
    held_out = stratified_tenth(train.labels, seed)
    validation = list[tuple[float, float]]()
    progress(0.0)
    fitted = fits(x[~held_out], train.labels[~held_out], _STRENGTHS, num_classes)
    for strength, layer in zip(_STRENGTHS, fitted, strict=True):
        accuracy = linear_accuracy(layer.logits(x[held_out]), train.labels[held_out], num_classes)
        validation.append((strength, accuracy.top1))
        progress(len(validation) / (len(_STRENGTHS) + 1))
    strength = max(validation, key=lambda pair: pair[1])[0]  # the first of equal ones
    (layer,) = fits(x, train.labels, [strength], num_classes)
    return QuickLinearFound(
        **linear_accuracy(layer.logits(test_x), test.labels, num_classes).model_dump(),
        strength=strength,
        validation=validation,
        num_train=len(train.labels),
        num_test=len(test.labels),
    )


def fits(
    x: Float64[Tensor, "images dim"], labels: Int64[Tensor, " images"], strengths: Sequence[float], num_classes: int
) -> Iterator[Layer]:
    """For each strength the layer of least mean of -log softmax(W x + b)[label], plus strength / 2 |W|^2.

    Each fit starts from the last one. A class without an image has the lowest logit there is.
    """
    # Slow to import, and other probes do without.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    classes = labels.unique()
    bias = torch.full((num_classes,), torch.finfo(torch.float64).min, dtype=torch.float64)
    weight = bias.new_zeros(num_classes, x.shape[1])
    model = LogisticRegression(tol=_GRADIENT, max_iter=_MAX_ITERATIONS, warm_start=True)
    for strength in strengths:
        if len(classes) == 1:  # which scikit-learn refuses
            bias[classes] = 0.0
        else:
            # Of two classes scikit-learn has one slope, the difference of the two rows of W, which are opposite.
            halves = torch.tensor([[-0.5], [0.5]]).double() if len(classes) == 2 else torch.ones(1, 1).double()
            model.set_params(C=len(halves) / (strength * len(labels)))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(x.numpy(), labels.numpy())
            weight[classes] = halves * torch.from_numpy(model.coef_)
            bias[classes] = halves[:, 0] * torch.from_numpy(model.intercept_)
        yield Layer(weight.clone(), bias.clone())


def standardised(
    train: Float[Tensor, "train dim"], test: Float[Tensor, "test dim"]
) -> tuple[Float64[Tensor, "train dim"], Float64[Tensor, "test dim"]]:
    """Both by the mean and deviation of the training images; 0 where all of these are equal, up to float32.

    Raises:
        ValueError: a representation of the training images is not finite.
    """
    train, test = train.double().cpu(), test.double().cpu()
    deviation, mean = torch.std_mean(train, 0, correction=0)
    if not bool(deviation.isfinite().all()):
        raise ValueError("a representation of the training images is not finite")
    varies = deviation > torch.finfo(torch.float32).eps * mean.abs()
    scale = torch.where(varies, 1 / deviation, 0.0)
    return (train - mean) * scale, (test - mean) * scale


def stratified_tenth(labels: Int64[Tensor, " images"], seed: int) -> Bool[Tensor, " images"]:
    """A tenth of every class, rounded up for some classes and down for others; at least one image in all."""
    generator = np.random.default_rng([seed, len(labels)])
    shuffled = torch.from_numpy(generator.permutation(len(labels)))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    held_out = torch.zeros_like(labels, dtype=torch.bool)
    held_out[by_class[int(generator.integers(min(_HELD_OUT, len(labels)))) :: _HELD_OUT]] = True
    return held_out
