"""The backbone for Hugging Face's transformers, and what their models are in timm's names."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glsd.encoder.encoder import CONFIG_FILE, WEIGHTS_FILE, Encoder, with_downsampling_moved
from glsd.weights.names import (
    Renames,
    depths_and_dims,
    renamed,
    renames,
    safetensors_bytes,
    settings,
    swin_facts,
    weights_of,
    with_qkv_split,
)
from glsd.weights.timm import ExportReport, write_export


def huggingface_family(names: Iterable[str]) -> str | None:
    """Which family's names transformers gives to these tensors, without what stands before them; None for others'."""
    names = list(names)
    if not any(name.startswith(("embeddings.", "embedder.")) for name in names):
        return None
    return next((_ON_HUB[start] for start in _ON_HUB if any(name.startswith(start) for name in names)), None)


def from_huggingface(weights: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of transformers' names, without a prefix, in timm's, as far as the `state_dict` of a timm model has them.

    Other weights stay as they are. DINOv2's tensors without a counterpart get the names of its authors, and Swin's
    patch merging is where its authors have it.
    """
    family = huggingface_family(weights)
    if family is None:
        return dict(weights)
    left = renamed(weights, _DINOV2_AS_VIT) if family == "vit" else dict(weights)
    found = {}
    for name, value in with_downsampling_moved(model, -1).items():
        theirs = list(renamed(with_qkv_split({name: value}), renames(family, "huggingface")))
        if all(their in left for their in theirs):
            parts = [left.pop(their) for their in theirs]
            found[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
    return found | left


def export_huggingface(encoder: Encoder, out: str | Path, family: str) -> ExportReport:
    """Write what `AutoModel` and `AutoImageProcessor` read."""
    facts, z_bar, arguments = _HUGGINGFACE_MODELS[family](encoder)
    config = encoder.config

    def lines(folder: Path) -> str:
        model = f"model = AutoModel.from_pretrained({str(folder)!r}{arguments})"
        return f"from transformers import AutoModel\n{model}\nz_bar = model.eval(){z_bar}"

    def refusal(size: int) -> str:
        if family == "swin" and min(encoder.backbone.grid(size)) < facts["window_size"]:
            return "SwinModel fails where a map is smaller than a window, as its last is"
        return ""

    weights = renamed(with_qkv_split(weights_of(encoder)), renames(family, "huggingface"))
    processor = {
        "image_processor_type": "BitImageProcessor",  # resizes the shorter side and crops; ViT's makes it square
        "size": {"shortest_edge": config.evaluation.resize},
        "crop_size": {"height": config.evaluation.crop, "width": config.evaluation.crop},
        "resample": 3,  # bicubic
        "image_mean": config.augment.mean,
        "image_std": config.augment.std,
        "glsd": settings(encoder)["glsd"],
    }
    files = {
        CONFIG_FILE: json.dumps({"model_type": family, "dtype": "float32", **facts}, indent=2).encode(),
        "preprocessor_config.json": json.dumps(processor, indent=2).encode(),
        WEIGHTS_FILE: safetensors_bytes(weights),
    }
    with _without_progress_bars():
        return write_export(encoder, out, files, lines, refusal, _NOTES.get(family, ""))


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Those of transformers, which loads the export once for each size that is compared."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _huggingface_swin(encoder: Encoder) -> tuple[dict[str, Any], str, str]:
    model = encoder.backbone.model
    windows = {block.window[0] for stage in model.layers for block in stage.blocks}
    if len(windows) > 1:
        raise ValueError(
            f"huggingface has no counterpart of the backbone {encoder.config.model.backbone}, whose windows are of "
            f"{' and '.join(map(str, sorted(windows)))} tokens: SwinModel has one size for all stages, as "
            "swin_tiny_patch4_window7_224 has"
        )
    facts = {
        "architectures": ["SwinModel"],
        "image_size": model.pretrained_cfg["input_size"][-1],
        **swin_facts(encoder),
        "window_size": windows.pop(),
        "layer_norm_eps": model.norm.eps,
    }
    return facts, "(images).pooler_output", ""


def _huggingface_vit(encoder: Encoder) -> tuple[dict[str, Any], str, str]:
    model = encoder.backbone.model
    facts = {
        "architectures": ["ViTModel"],
        "image_size": model.patch_embed.img_size[0],
        "patch_size": model.patch_embed.patch_size[0],
        "hidden_size": model.embed_dim,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": model.blocks[0].attn.num_heads,
        "intermediate_size": model.blocks[0].mlp.fc1.out_features,
        "layer_norm_eps": model.norm.eps,
    }
    z_bar = "(images, interpolate_pos_encoding=True).last_hidden_state[:, 0]"
    return facts, z_bar, ", add_pooling_layer=False"


def _huggingface_resnet(encoder: Encoder) -> tuple[dict[str, Any], str, str]:
    model = encoder.backbone.model
    stages = [model.layer1, model.layer2, model.layer3, model.layer4]
    last = "conv3" if hasattr(model.layer1[0], "conv3") else "conv2"
    facts = {
        "architectures": ["ResNetModel"],
        "embedding_size": model.conv1.out_channels,
        "hidden_sizes": [stage[0].get_submodule(last).out_channels for stage in stages],
        "depths": [len(stage) for stage in stages],
        "layer_type": "bottleneck" if last == "conv3" else "basic",
    }
    return facts, "(images).pooler_output.flatten(1)", ""


def _huggingface_convnext(encoder: Encoder) -> tuple[dict[str, Any], str, str]:
    depths, dims = depths_and_dims(encoder)
    eps = encoder.backbone.model.head.norm.eps
    facts = {"architectures": ["ConvNextModel"], "hidden_sizes": dims, "depths": depths, "layer_norm_eps": eps}
    return facts, "(images).pooler_output", ""


_HUGGINGFACE_MODELS = {
    "swin": _huggingface_swin,
    "vit": _huggingface_vit,
    "resnet": _huggingface_resnet,
    "convnext": _huggingface_convnext,
}
_NOTES = {
    "swin": (
        "SwinModel's LayerNorm in patch embedding and merging has an epsilon of 1e-5, training has 1e-6; once it was "
        "given a map smaller than a window, it fails at every size"
    ),
    "vit": "ViTModel resamples positions for other sizes without antialiasing, training does with it",
}
"""What differs by more than rounding, by family."""
_ON_HUB = {"embedder.": "resnet", "encoder.layer.": "vit", "encoder.layers.": "swin", "encoder.stages.": "convnext"}
"""Families by how transformers' names begin."""
_DINOV2_AS_VIT: Renames = (
    (r"\.norm1", ".layernorm_before"),
    (r"\.norm2", ".layernorm_after"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"^embeddings\.(mask_token|register_tokens)", r"\1"),
)
