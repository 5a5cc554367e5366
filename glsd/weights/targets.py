"""An encoder's backbone for the libraries where people use one: timm, torchvision, transformers, ONNX.

Every export is a folder that its library loads by the lines of Python in the report; `timm.py` writes it, runs these
lines and states how near their features come to ours. torchvision and transformers have Swin, ViT, ResNet and ConvNeXt:
their tensors are renamed, q, k and v stacked or split. An ONNX graph is our own forward pass.
"""

import importlib.util
import re
from pathlib import Path
from typing import Literal

from glsd.encoder.encoder import Encoder
from glsd.models.backbone import timm_architecture
from glsd.weights.huggingface import export_huggingface
from glsd.weights.onnx import export_onnx
from glsd.weights.timm import ExportReport, export_backbone
from glsd.weights.torchvision import export_torchvision

FAMILIES = {
    "swin": r"swin_(tiny|small|base|large)_patch4_window\d+_\d+",
    "vit": r"vit_(tiny|small|base|large|huge)_patch\d+_\d+",
    "resnet": r"resnet(18|34|50|101|152)",
    "convnext": r"convnext_(atto|femto|pico|nano|tiny|small|base|large|xlarge)",
}
_IN_WORDS = "swin_SIZE_patch4_windowN_PX, vit_SIZE_patchN_PX, resnet18, 34, 50, 101 and 152, and convnext_SIZE"
_NEEDED: dict[str, tuple[str, ...]] = {"huggingface": ("transformers",), "onnx": ("onnx", "onnxruntime", "onnxscript")}


def export_to(
    encoder: Encoder, out: str | Path, target: Literal["timm", "torchvision", "huggingface", "onnx"]
) -> ExportReport:
    """Write the backbone as a folder that the target's library loads; an earlier export for it is replaced.

    * timm: see `export_backbone`.
    * torchvision: `model.safetensors`, and in `torchvision.json` the code that builds the model and loads them. A ViT
      is built for `evaluation.crop`, the position embeddings resampled.
    * huggingface: what `AutoModel` and `AutoImageProcessor` read, with the names that tensors have on the hub.
    * onnx: `model.onnx`, from `images` (batch, 3, height, width) to `z_bar` (batch, d) and `z` (batch, H, W, d), of any
      batch, height and width where PyTorch can trace the backbone so, else of `evaluation.crop` pixels; the
      preprocessing is in `onnx.json`.

    Raises:
        ValueError: the library is not installed or has no counterpart of the backbone, or `out` is a file or a folder
            that holds something else than an earlier export for the target.
    """
    if target == "timm":
        return export_backbone(encoder, out)
    if missing := [name for name in _NEEDED.get(target, ()) if importlib.util.find_spec(name) is None]:
        raise ValueError(f"exporting to {target} needs {', '.join(missing)}: pip install 'glsd[{target}]'")
    encoder = Encoder(encoder.backbone, encoder.config).cpu()
    if target == "onnx":
        return export_onnx(encoder, out)
    backbone = encoder.config.model.backbone
    architecture, arguments = timm_architecture(backbone)
    if "output_stride" in arguments:
        raise ValueError(
            f"{target} has no counterpart of the backbone {backbone}, whose last stages are dilated; export it to timm "
            "or onnx, or train a backbone without _stride"
        )
    for family, names in FAMILIES.items():
        if re.fullmatch(names, architecture):
            export = export_torchvision if target == "torchvision" else export_huggingface
            return export(encoder, out, family)
    raise ValueError(f"{target} has no counterpart of the backbone {backbone}; it has those of {_IN_WORDS}")
