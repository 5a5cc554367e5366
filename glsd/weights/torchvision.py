"""The backbone for torchvision: renamed tensors, and the code that builds the model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.layers.pos_embed import resample_abs_pos_embed

from glsd.encoder.encoder import WEIGHTS_FILE, Encoder
from glsd.weights.names import (
    depths_and_dims,
    renamed,
    renames,
    safetensors_bytes,
    settings,
    swin_facts,
    weights_of,
)
from glsd.weights.timm import ExportReport, write_export

_SWIN_NOTE = (
    "torchvision's Swin shifts no windows in a map that fits into one, as one of 96 px does in a late stage; "
    "training shifts them"
)


def export_torchvision(encoder: Encoder, out: str | Path, family: str) -> ExportReport:
    """Write the tensors and the code that builds the model."""
    weights, crop = weights_of(encoder), encoder.config.evaluation.crop
    if family == "vit":
        embed = encoder.backbone.model.patch_embed
        weights["pos_embed"] = resample_abs_pos_embed(
            weights["pos_embed"], list(encoder.backbone.grid(crop)), list(embed.grid_size)
        )
    for name, module in encoder.backbone.model.named_modules():
        if family == "swin" and name.endswith(".attn"):
            weights[f"{name}.relative_position_index"] = module.relative_position_index.flatten()
    weights = renamed(weights, renames(family, "torchvision"))
    if family == "convnext":
        weights |= {key: value[:, None, None] for key, value in weights.items() if key.endswith(".layer_scale")}
    model = _TORCHVISION_MODELS[family](encoder)

    def lines(folder: str | Path) -> str:
        load = f"model.load_state_dict(load_file({f'{folder}/{WEIGHTS_FILE}'!r}))"
        return f"import torch\nfrom safetensors.torch import load_file\n{model}\n{load}\nz_bar = model.eval()(images)"

    def refusal(size: int) -> str:
        return f"torchvision's VisionTransformer takes one size, here {crop} px" * (family == "vit" and size != crop)

    facts = {"python": lines(".").split("\n"), **settings(encoder)}
    files = {WEIGHTS_FILE: safetensors_bytes(weights), "torchvision.json": json.dumps(facts, indent=2).encode()}
    return write_export(encoder, out, files, lines, refusal, _SWIN_NOTE if family == "swin" else "")


def _call(arguments: Mapping[str, Any]) -> str:
    """Arguments as Python writes them."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _torchvision_swin(encoder: Encoder) -> str:
    model, facts = encoder.backbone.model, swin_facts(encoder)
    windows = [stage.blocks[0].window for stage in model.layers]
    arguments = _call({"patch_size": [4, 4], **facts, "window_size": list(windows[0])})
    lines = [
        "from functools import partial",
        "from torchvision.models.swin_transformer import ShiftedWindowAttention, SwinTransformer",
        f"model = SwinTransformer({arguments}, norm_layer=partial(torch.nn.LayerNorm, eps={model.norm.eps}))",
        "model.head = torch.nn.Identity()",
    ]
    for index, stage in enumerate(model.layers):
        if not any(any(block.shift) for block in stage.blocks):  # torchvision would shift them in larger maps
            attention = {"dim": stage.blocks[0].norm1.weight.numel(), "window_size": list(windows[index])}
            attention |= {"shift_size": [0, 0], "num_heads": facts["num_heads"][index]}
            lines += [
                f"for block in model.features[{2 * index + 1}]:",
                f"    block.attn = ShiftedWindowAttention({_call(attention)})",
            ]
    return "\n".join(lines)


def _torchvision_vit(encoder: Encoder) -> str:
    model = encoder.backbone.model
    arguments = {
        "image_size": encoder.config.evaluation.crop,
        "patch_size": model.patch_embed.patch_size[0],
        "num_layers": len(model.blocks),
        "num_heads": model.blocks[0].attn.num_heads,
        "hidden_dim": model.embed_dim,
        "mlp_dim": model.blocks[0].mlp.fc1.out_features,
    }
    return (
        "from torchvision.models import VisionTransformer\n"
        f"model = VisionTransformer({_call(arguments)})\nmodel.heads = torch.nn.Identity()"
    )


def _torchvision_resnet(encoder: Encoder) -> str:
    name = encoder.config.model.backbone
    return f"from torchvision.models import {name}\nmodel = {name}()\nmodel.fc = torch.nn.Identity()"


def _torchvision_convnext(encoder: Encoder) -> str:
    depths, dims = depths_and_dims(encoder)
    stages = ", ".join(
        f"CNBlockConfig({', '.join(map(str, stage))})" for stage in zip(dims, [*dims[1:], None], depths, strict=True)
    )
    return (
        "from torchvision.models.convnext import CNBlockConfig, ConvNeXt\n"
        f"model = ConvNeXt([{stages}])\nmodel.classifier[2] = torch.nn.Identity()"
    )


_TORCHVISION_MODELS = {
    "swin": _torchvision_swin,
    "vit": _torchvision_vit,
    "resnet": _torchvision_resnet,
    "convnext": _torchvision_convnext,
}
