"""An encoder's backbone as a folder that timm loads: `model.safetensors` and `config.json`, nothing pickled.

`timm.create_model("local-dir:FOLDER", pretrained=True, num_classes=0)` reads both; the names are the first that timm
looks for. The folder also holds our own settings, so `load_encoder` gives exactly the encoder that was exported, where
timm's model of the same weights may differ: its Swin has another LayerNorm epsilon, which the report measures, and at
sizes whose maps are not whole windows it pads after the cyclic shift and not before (`glsd.models.swin`).
"""

import json
import os
import shutil
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors.torch import save
from timm.models.swin_transformer import SwinTransformer

from glsd.data.filesystems import sync_folder, synced
from glsd.evaluation.encoder import CONFIG_FILE, WEIGHTS_FILE, Encoder, with_downsampling_moved
from glsd.models import timm_architecture

_ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False}  # what lets a timm model take other sizes
_COMPARED_PX = 224


class ExportReport(NamedTuple):
    """Where the export lies, how near timm's model comes to ours, and how to load it."""

    path: Path
    largest_difference: float
    """Largest absolute difference of an entry of z̄ between timm's model and ours, on two images of noise."""
    largest_entry: float
    """Largest absolute entry of our z̄ of these images, to judge the difference by."""
    size: int
    """Side of these images in pixels: 224, or `evaluation.crop` where the backbone cannot take that."""
    lines: str
    """Three lines of Python that give z̄ with timm."""


def export_backbone(encoder: Encoder, out: str | Path) -> ExportReport:
    """Write the backbone for timm; the folder is there whole or not at all, an earlier export is replaced.

    Raises:
        ValueError: `out` is a file, or a folder that holds something else than an export.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100 - Path.resolve would follow symlinks
    _refuse_to_replace(out)
    partial, replaced = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.replaced")
    out.parent.mkdir(parents=True, exist_ok=True)
    for leftover in (partial, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    weights = {key: value.cpu().contiguous() for key, value in encoder.backbone.model.state_dict().items()}
    if isinstance(encoder.backbone.model, SwinTransformer):
        # timm up to 1.0.30 takes a Swin without classifier for one in the layout of Swin's authors, and later ones
        # recognise that layout; so it is the one that every timm loads.
        weights = with_downsampling_moved(weights, -1)
    for name, content in (
        (WEIGHTS_FILE, save(weights, metadata={"format": "pt"})),
        (CONFIG_FILE, json.dumps(_timm_config(encoder), indent=2).encode()),
    ):
        with synced(partial / name) as stream:
            stream.write(content)
    sync_folder(partial)

    report = _compared(encoder, partial, out)  # before it is in place: what timm cannot load is not an export
    if out.exists():
        out.rename(replaced)
    partial.rename(out)
    sync_folder(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    return report


def _refuse_to_replace(out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or {entry.name for entry in out.iterdir()} != {CONFIG_FILE, WEIGHTS_FILE}:
        raise ValueError(f"{out} is no earlier export and will not be replaced; name an empty or a new folder")


def _timm_config(encoder: Encoder) -> dict[str, Any]:
    """What timm's `config.json` says of a model, and our settings in a section of their own."""
    config, model = encoder.config, encoder.backbone.model
    architecture, model_args = timm_architecture(config.model.backbone)
    accepted = signature(type(model).__init__).parameters
    any_size = {key: value for key, value in _ANY_SIZE.items() if key in accepted}
    defaults: dict[str, Any] = model.pretrained_cfg
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": encoder.backbone.dim,
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [3, config.evaluation.crop, config.evaluation.crop],
            # timm would build a model of a fixed size for `input_size`, and with it other windows or positions.
            "fixed_input_size": not any_size and bool(defaults.get("fixed_input_size")),
            "interpolation": "bicubic",
            "crop_pct": config.evaluation.crop / config.evaluation.resize,
            "crop_mode": "center",
            "mean": list(config.augment.mean),
            "std": list(config.augment.std),
            "first_conv": defaults.get("first_conv"),
            "classifier": defaults.get("classifier"),
        },
        "model_args": {**model_args, **any_size},
        "glsd": {"config": config.model_dump(mode="json")},
    }


def _compared(encoder: Encoder, written: Path, out: Path) -> ExportReport:
    device = next(encoder.parameters()).device
    size = _compared_size(encoder)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.random.fork_rng(devices=[]):
        model: Any = timm.create_model(f"local-dir:{written}", pretrained=True, num_classes=0).eval().to(device)
    with torch.no_grad():
        ours, theirs = encoder(images)[0], model(images)
        line = "z_bar = model.eval()(images)"
        if theirs.shape != ours.shape:  # its head goes on after the pooling, as MobileNet's does
            theirs = model.forward_features(images).mean((2, 3))
            line = "z_bar = model.eval().forward_features(images).mean((2, 3))"
    return ExportReport(
        out,
        (ours - theirs).abs().max().item(),
        ours.abs().max().item(),
        size,
        f"import timm\nmodel = timm.create_model({f'local-dir:{out}'!r}, pretrained=True, num_classes=0)\n{line}",
    )


def _compared_size(encoder: Encoder) -> int:
    try:
        encoder.backbone.grid(_COMPARED_PX)
    except ValueError:
        return encoder.config.evaluation.crop
    return _COMPARED_PX
