"""What the name of a model stands for, wherever one is asked for: something of our own, or weights for a timm model."""

import warnings
from collections import Counter

import timm
import torch
from torch import Tensor

from glsd.encoder.encoder import Encoder, load_encoder
from glsd.weights.foreign import encoder_of, foreign_encoder, timm_normalization
from glsd.weights.layouts import FLAT, Part

_PREFIX = "timm:"


def load_model(name: str) -> Encoder:
    """The encoder that a name stands for.

    - a run (its newest checkpoint), a checkpoint, or a folder that `export_backbone` wrote, local or a URI;
    - `timm:NAME`, or `timm:NAME.TAG`: weights that timm fetches from its hub, or has in its cache;
    - `timm:NAME=FILE`, or `timm:NAME.TAG=FILE`: a file in a layout that `convert` reads.

    Images of timm's weights are normalised by the mean and deviation that timm has for them. For a file these are
    ImageNet's, as in `convert`, or with a tag those that timm has for the tag: a file of
    `vit_small_patch16_224.augreg_in21k_ft_in1k` needs the tag, DINO's of the same backbone must not have it. All images
    are resized to 256 px and cropped to 224.

    Warns where weights and backbone have tensors without a counterpart.

    Raises:
        ValueError: there is nothing of that name, timm's weights cannot be fetched, the file does not fit, or weights
            are not finite.
    """
    if not name.startswith(_PREFIX):
        return load_encoder(name)
    model, equals, file = name.removeprefix(_PREFIX).partition("=")
    if equals:
        encoder, report = foreign_encoder(file, model)
    else:
        backbone, _, tag = model.partition(".")
        normalisation = timm_normalization(backbone, tag)
        encoder, report = encoder_of(Part(name, FLAT, _fetched(model), Counter()), backbone)
        encoder.config = encoder.config.with_overrides(normalisation)
    if report.missing or report.unexpected:
        warnings.warn(f"{report.path} does not fit its backbone completely\n{report}", stacklevel=2)
    return encoder


def _fetched(model: str) -> dict[str, Tensor]:
    """Weights of timm's hub or its cache."""
    try:
        with torch.random.fork_rng(devices=[]):
            weights: dict[str, Tensor] = timm.create_model(model, pretrained=True, num_classes=0).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"timm's weights of {model} cannot be fetched ({error}); where there is no network, name a file of "
            f"weights: timm:{model}=FILE"
        ) from error
    return weights
