"""What exports to several libraries share: renamed tensors, facts of a Swin, settings of images, notes."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from safetensors.torch import save
from torch import Tensor

from glsd.encoder.encoder import Encoder, with_downsampling_moved

Renames = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
"""Regular expressions and what takes their place, applied one after the other to names in timm's layout."""


def weights_of(encoder: Encoder) -> dict[str, Tensor]:
    """By timm's names, but Swin's patch merging and ConvNeXt's perceptrons as their authors have them."""
    weights = with_downsampling_moved(encoder.backbone.model.state_dict(), -1)
    return {key: value.flatten(1) if value.ndim == 4 and "mlp." in key else value for key, value in weights.items()}


def with_qkv_split(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with each qkv as q, k and v."""
    split = {}
    for key, value in weights.items():
        if "attn.qkv" in key:
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                split[key.replace("qkv", name)] = part
        else:
            split[key] = value
    return split


def renamed(weights: Mapping[str, Tensor], renames: Renames) -> dict[str, Tensor]:
    """The tensors under the names of another library."""
    renamed = {}
    for key, value in weights.items():
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def safetensors_bytes(weights: Mapping[str, Tensor]) -> bytes:
    """The content of a file of safetensors."""
    return save({key: value.contiguous() for key, value in weights.items()}, metadata={"format": "pt"})


def swin_facts(encoder: Encoder) -> dict[str, Any]:
    """What both libraries ask of a Swin."""
    model = encoder.backbone.model
    return {
        "embed_dim": model.patch_embed.proj.out_channels,
        "depths": [len(stage.blocks) for stage in model.layers],
        "num_heads": [stage.blocks[0].attn.num_heads for stage in model.layers],
    }


def depths_and_dims(encoder: Encoder) -> tuple[list[int], list[int]]:
    """Of the stages of a ConvNeXt."""
    stages = encoder.backbone.model.stages
    return [len(stage.blocks) for stage in stages], [stage.blocks[0].conv_dw.out_channels for stage in stages]


def call(arguments: Mapping[str, Any]) -> str:
    """Arguments as Python writes them."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def settings(encoder: Encoder) -> dict[str, Any]:
    """What is done to an image before it is given to the model, and the settings of the run."""
    config = encoder.config
    return {
        "preprocessing": {
            "resize": config.evaluation.resize,
            "interpolation": "bicubic",
            "center_crop": config.evaluation.crop,
            "mean": config.augment.mean,
            "std": config.augment.std,
        },
        "glsd": {"config": config.model_dump(mode="json")},
    }


NOTES = {
    ("torchvision", "swin"): (
        "torchvision's Swin shifts no windows in a map that fits into one, as one of 96 px does in a late stage; "
        "training shifts them"
    ),
    ("huggingface", "swin"): (
        "SwinModel's LayerNorm in patch embedding and merging has an epsilon of 1e-5, training has 1e-6; once it was "
        "given a map smaller than a window, it fails at every size"
    ),
    ("huggingface", "vit"): "ViTModel resamples positions for other sizes without antialiasing, training does with it",
}
