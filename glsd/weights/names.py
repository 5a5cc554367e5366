"""What exports to several libraries share: renamed tensors, facts of a Swin and a ConvNeXt, settings of images."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from safetensors.torch import save
from torch import Tensor

from glsd.encoder.encoder import Encoder, with_downsampling_moved

Library = Literal["torchvision", "huggingface"]
_Replacement = str | Callable[[re.Match[str]], str]
Renames = Sequence[tuple[str, _Replacement]]
"""Regular expressions and what takes their place, applied one after the other to a name."""


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


def renames(family: str, library: Library) -> Renames:
    """From timm's names of a family to those of a library."""
    column = 1 if library == "torchvision" else 2
    return [(row[0], replacement) for row in _NAMES[family] if (replacement := row[column]) is not None]


def safetensors_bytes(weights: Mapping[str, Tensor]) -> bytes:
    """The content of a file of safetensors."""
    return save({key: value.cpu().contiguous() for key, value in weights.items()}, metadata={"format": "pt"})


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


_NAMES: dict[str, Sequence[tuple[str, _Replacement | None, _Replacement | None]]] = {
    "swin": (
        (r"^patch_embed\.proj", "features.0.0", "embeddings.patch_embeddings.projection"),
        (r"^patch_embed\.norm", "features.0.2", "embeddings.norm"),
        (r"^layers\.(\d+)\.blocks", lambda found: f"features.{2 * int(found[1]) + 1}", r"encoder.layers.\1.blocks"),
        (
            r"^layers\.(\d+)\.downsample",
            lambda found: f"features.{2 * int(found[1]) + 2}",
            r"encoder.layers.\1.downsample",
        ),
        (r"\.norm1", None, ".layernorm_before"),
        (r"\.norm2", None, ".layernorm_after"),
        (r"attn\.(query|key|value|relative)", None, r"attention.self.\1"),
        (r"attn\.proj", None, "attention.output.dense"),
        (r"mlp\.fc1", "mlp.0", "intermediate.dense"),
        (r"mlp\.fc2", "mlp.3", "output.dense"),
        (r"^norm", None, "layernorm"),
    ),
    "vit": (
        (r"^cls_token", "class_token", "embeddings.cls_token"),
        (r"^pos_embed", "encoder.pos_embedding", "embeddings.position_embeddings"),
        (r"^patch_embed\.proj", "conv_proj", "embeddings.patch_embeddings.projection"),
        (r"^blocks\.(\d+)", r"encoder.layers.encoder_layer_\1", r"encoder.layer.\1"),
        (r"\.norm1", ".ln_1", ".layernorm_before"),
        (r"\.norm2", ".ln_2", ".layernorm_after"),
        (r"attn\.qkv\.", "self_attention.in_proj_", None),
        (r"attn\.(query|key|value)", None, r"attention.attention.\1"),
        (r"attn\.proj", "self_attention.out_proj", "attention.output.dense"),
        (r"mlp\.fc1", "mlp.0", "intermediate.dense"),
        (r"mlp\.fc2", "mlp.3", "output.dense"),
        (r"^norm", "encoder.ln", "layernorm"),
    ),
    "resnet": (
        (r"^layer(\d)\.(\d+)", None, lambda found: f"encoder.stages.{int(found[1]) - 1}.layers.{found[2]}"),
        (r"downsample\.0", None, "shortcut.convolution"),
        (r"downsample\.1", None, "shortcut.normalization"),
        (r"^conv1", None, "embedder.embedder.convolution"),
        (r"^bn1", None, "embedder.embedder.normalization"),
        (r"\.conv(\d)", None, lambda found: f".layer.{int(found[1]) - 1}.convolution"),
        (r"\.bn(\d)", None, lambda found: f".layer.{int(found[1]) - 1}.normalization"),
    ),
    "convnext": (
        (r"^stem\.0", "features.0.0", "embeddings.patch_embeddings"),
        (r"^stem\.1", "features.0.1", "embeddings.layernorm"),
        (r"^head\.norm", "classifier.0", "layernorm"),
        (
            r"^stages\.(\d+)\.downsample",
            lambda found: f"features.{2 * int(found[1])}",
            r"encoder.stages.\1.downsampling_layer",
        ),
        (
            r"^stages\.(\d+)\.blocks\.(\d+)",
            lambda found: f"features.{2 * int(found[1]) + 1}.{found[2]}.block",
            r"encoder.stages.\1.layers.\2",
        ),
        (r"\.conv_dw", ".0", ".dwconv"),
        (r"\.norm", ".2", ".layernorm"),
        (r"\.mlp\.fc1", ".3", ".pwconv1"),
        (r"\.mlp\.fc2", ".5", ".pwconv2"),
        (r"(\.block)?\.gamma", ".layer_scale", ".layer_scale_parameter"),
    ),
}
"""By family: parts of timm's names, and what stands in their place in torchvision and in transformers, if it differs.

The rows are applied one after the other.
"""
