"""An encoder's backbone for the libraries where people use one: timm, torchvision, transformers, ONNX.

Every export is a folder that its library loads by the lines of Python in the report; `glsd.evaluation.export` writes
it, runs these lines and states how near their features come to ours. torchvision and transformers have Swin, ViT,
ResNet and ConvNeXt: their tensors are renamed, q, k and v stacked or split. What differs there by more than rounding
is said in `_NOTES`. An ONNX graph is our own forward pass.
"""

import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from glsd.evaluation.encoder import CONFIG_FILE, WEIGHTS_FILE, Encoder, with_downsampling_moved
from glsd.evaluation.export import ExportReport, export_backbone, refuse_to_replace, write_export
from glsd.models.backbone import timm_architecture

Renames = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
"""Regular expressions and what takes their place, applied one after the other to names in timm's layout."""

_FAMILIES = {
    "swin": r"swin_(tiny|small|base|large)_patch4_window\d+_\d+",
    "vit": r"vit_(tiny|small|base|large|huge)_patch\d+_\d+",
    "resnet": r"resnet(18|34|50|101|152)",
    "convnext": r"convnext_(atto|femto|pico|nano|tiny|small|base|large|xlarge)",
}
_IN_WORDS = "swin_SIZE_patch4_windowN_PX, vit_SIZE_patchN_PX, resnet18, 34, 50, 101 and 152, and convnext_SIZE"
_NOTES = {
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
_NEEDED: dict[str, tuple[str, ...]] = {"huggingface": ("transformers",), "onnx": ("onnx", "onnxruntime", "onnxscript")}
_TRACED_PX = (160, 192)  # no square and no whole windows: a graph traced with such would hold for nothing else


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
        return _export_onnx(encoder, out)
    backbone = encoder.config.model.backbone
    architecture, arguments = timm_architecture(backbone)
    if "output_stride" in arguments:
        raise ValueError(
            f"{target} has no counterpart of the backbone {backbone}, whose last stages are dilated; export it to timm "
            "or onnx, or train a backbone without _stride"
        )
    for family, names in _FAMILIES.items():
        if re.fullmatch(names, architecture):
            export = _export_torchvision if target == "torchvision" else _export_huggingface
            return export(encoder, out, family)
    raise ValueError(f"{target} has no counterpart of the backbone {backbone}; it has those of {_IN_WORDS}")


def huggingface_family(names: Iterable[str]) -> str | None:
    """Which family's names transformers gives to these tensors, without what stands before them; None for others'."""
    names = list(names)
    if not any(name.startswith(("embeddings.", "embedder.")) for name in names):
        return None
    return next((_ON_HUB[start] for start in _ON_HUB if any(name.startswith(start) for name in names)), None)


def from_huggingface(weights: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of transformers' names in timm's, as far as a timm model has them; other weights stay as they are.

    DINOv2's tensors without a counterpart get the names of its authors, and Swin's patch merging is where its authors
    have it.

    Args:
        weights: by the names of one model, without what stands before them.
        model: the `state_dict` of the timm model.
    """
    family = huggingface_family(weights)
    if family is None:
        return dict(weights)
    left = _renamed(weights, _DINOV2_AS_VIT) if family == "vit" else dict(weights)
    found = {}
    for name, value in with_downsampling_moved(model, -1).items():
        theirs = list(_renamed(_with_qkv_split({name: value}), _HUGGINGFACE_NAMES[family]))
        if all(their in left for their in theirs):
            parts = [left.pop(their) for their in theirs]
            found[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
    return found | left


def _export_torchvision(encoder: Encoder, out: str | Path, family: str) -> ExportReport:
    weights, crop = _weights(encoder), encoder.config.evaluation.crop
    if family == "vit":
        embed = encoder.backbone.model.patch_embed
        weights["pos_embed"] = resample_abs_pos_embed(
            weights["pos_embed"], list(encoder.backbone.grid(crop)), list(embed.grid_size)
        )
    for name, module in encoder.backbone.model.named_modules():
        if family == "swin" and name.endswith(".attn"):
            weights[f"{name}.relative_position_index"] = module.relative_position_index.flatten()
    weights = _renamed(weights, _TORCHVISION_NAMES[family])
    if family == "convnext":
        weights |= {key: value[:, None, None] for key, value in weights.items() if key.endswith(".layer_scale")}
    model = _TORCHVISION_MODELS[family](encoder)

    def lines(folder: str | Path) -> str:
        load = f"model.load_state_dict(load_file({f'{folder}/{WEIGHTS_FILE}'!r}))"
        return f"import torch\nfrom safetensors.torch import load_file\n{model}\n{load}\nz_bar = model.eval()(images)"

    def refusal(size: int) -> str:
        return f"torchvision's VisionTransformer takes one size, here {crop} px" * (family == "vit" and size != crop)

    facts = {"python": lines(".").split("\n"), **_settings(encoder)}
    files = {WEIGHTS_FILE: _safetensors(weights), "torchvision.json": json.dumps(facts, indent=2).encode()}
    return write_export(encoder, out, files, lines, refusal, _NOTES.get(("torchvision", family), ""))


def _torchvision_swin(encoder: Encoder) -> str:
    model, facts = encoder.backbone.model, _swin_facts(encoder)
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
    depths, dims = _depths_and_dims(encoder)
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
_TORCHVISION_NAMES: dict[str, Renames] = {
    "swin": (
        (r"^patch_embed\.proj", "features.0.0"),
        (r"^patch_embed\.norm", "features.0.2"),
        (r"^layers\.(\d+)\.blocks", lambda found: f"features.{2 * int(found[1]) + 1}"),
        (r"^layers\.(\d+)\.downsample", lambda found: f"features.{2 * int(found[1]) + 2}"),
        (r"mlp\.fc1", "mlp.0"),
        (r"mlp\.fc2", "mlp.3"),
    ),
    "vit": (
        (r"^cls_token", "class_token"),
        (r"^pos_embed", "encoder.pos_embedding"),
        (r"^patch_embed\.proj", "conv_proj"),
        (r"^norm", "encoder.ln"),
        (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
        (r"\.norm(\d)", r".ln_\1"),
        (r"attn\.qkv\.", "self_attention.in_proj_"),
        (r"attn\.proj", "self_attention.out_proj"),
        (r"mlp\.fc1", "mlp.0"),
        (r"mlp\.fc2", "mlp.3"),
    ),
    "resnet": (),
    "convnext": (
        (r"^stem", "features.0"),
        (r"^stages\.(\d+)\.downsample", lambda found: f"features.{2 * int(found[1])}"),
        (r"^stages\.(\d+)\.blocks\.(\d+)\.", lambda found: f"features.{2 * int(found[1]) + 1}.{found[2]}.block."),
        (r"block\.conv_dw", "block.0"),
        (r"block\.norm", "block.2"),
        (r"block\.mlp\.fc1", "block.3"),
        (r"block\.mlp\.fc2", "block.5"),
        (r"block\.gamma", "layer_scale"),
        (r"^head\.norm", "classifier.0"),
    ),
}


def _export_huggingface(encoder: Encoder, out: str | Path, family: str) -> ExportReport:
    facts, z_bar, arguments = _HUGGINGFACE_MODELS[family](encoder)
    config = encoder.config

    def lines(folder: Path) -> str:
        model = f"model = AutoModel.from_pretrained({str(folder)!r}{arguments})"
        return f"from transformers import AutoModel\n{model}\nz_bar = model.eval(){z_bar}"

    def refusal(size: int) -> str:
        if family == "swin" and min(encoder.backbone.grid(size)) < facts["window_size"]:
            return "SwinModel fails where a map is smaller than a window, as its last is"
        return ""

    weights = _renamed(_with_qkv_split(_weights(encoder)), _HUGGINGFACE_NAMES[family])
    processor = {
        "image_processor_type": "BitImageProcessor",  # resizes the shorter side and crops; ViT's makes it square
        "size": {"shortest_edge": config.evaluation.resize},
        "crop_size": {"height": config.evaluation.crop, "width": config.evaluation.crop},
        "resample": 3,  # bicubic
        "image_mean": config.augment.mean,
        "image_std": config.augment.std,
        "glsd": _settings(encoder)["glsd"],
    }
    files = {
        CONFIG_FILE: json.dumps({"model_type": family, "dtype": "float32", **facts}, indent=2).encode(),
        "preprocessor_config.json": json.dumps(processor, indent=2).encode(),
        WEIGHTS_FILE: _safetensors(weights),
    }
    with _without_progress_bars():
        return write_export(encoder, out, files, lines, refusal, _NOTES.get(("huggingface", family), ""))


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
        **_swin_facts(encoder),
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
    depths, dims = _depths_and_dims(encoder)
    eps = encoder.backbone.model.head.norm.eps
    facts = {"architectures": ["ConvNextModel"], "hidden_sizes": dims, "depths": depths, "layer_norm_eps": eps}
    return facts, "(images).pooler_output", ""


_HUGGINGFACE_MODELS = {
    "swin": _huggingface_swin,
    "vit": _huggingface_vit,
    "resnet": _huggingface_resnet,
    "convnext": _huggingface_convnext,
}
_TRANSFORMER_BLOCKS: Renames = (
    (r"\.norm1", ".layernorm_before"),
    (r"\.norm2", ".layernorm_after"),
    (r"attn\.proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
    (r"^norm", "layernorm"),
)
_HUGGINGFACE_NAMES: dict[str, Renames] = {
    "swin": (
        (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
        (r"^patch_embed\.norm", "embeddings.norm"),
        (r"^layers", "encoder.layers"),
        (r"attn\.(query|key|value|relative)", r"attention.self.\1"),
        *_TRANSFORMER_BLOCKS,
    ),
    "vit": (
        (r"^cls_token", "embeddings.cls_token"),
        (r"^pos_embed", "embeddings.position_embeddings"),
        (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
        (r"^blocks", "encoder.layer"),
        (r"attn\.(query|key|value)", r"attention.attention.\1"),
        *_TRANSFORMER_BLOCKS,
    ),
    "resnet": (
        (r"^layer(\d)\.(\d+)", lambda found: f"encoder.stages.{int(found[1]) - 1}.layers.{found[2]}"),
        (r"downsample\.0", "shortcut.convolution"),
        (r"downsample\.1", "shortcut.normalization"),
        (r"^conv1", "embedder.embedder.convolution"),
        (r"^bn1", "embedder.embedder.normalization"),
        (r"\.conv(\d)", lambda found: f".layer.{int(found[1]) - 1}.convolution"),
        (r"\.bn(\d)", lambda found: f".layer.{int(found[1]) - 1}.normalization"),
    ),
    "convnext": (
        (r"^stem\.0", "embeddings.patch_embeddings"),
        (r"^stem\.1", "embeddings.layernorm"),
        (r"^head\.norm", "layernorm"),
        (r"^stages\.(\d+)\.downsample", r"encoder.stages.\1.downsampling_layer"),
        (r"^stages\.(\d+)\.blocks", r"encoder.stages.\1.layers"),
        (r"\.conv_dw", ".dwconv"),
        (r"\.norm", ".layernorm"),
        (r"\.mlp\.fc", ".pwconv"),
        (r"\.gamma", ".layer_scale_parameter"),
    ),
}

_ON_HUB = {"embedder.": "resnet", "encoder.layer.": "vit", "encoder.layers.": "swin", "encoder.stages.": "convnext"}
"""Families by how transformers' names begin."""
_DINOV2_AS_VIT: Renames = (
    *_TRANSFORMER_BLOCKS,
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"^embeddings\.(mask_token|register_tokens)", r"\1"),
)


def _export_onnx(encoder: Encoder, out: str | Path) -> ExportReport:
    crop = encoder.config.evaluation.crop
    names = ("model.onnx", "onnx.json")
    refuse_to_replace(out, names)  # before the minute that tracing takes
    try:
        graph, any_size = _graph(encoder, _TRACED_PX, any_size=True), True
    except torch.onnx.OnnxExporterError:
        graph, any_size = _graph(encoder, (crop, crop), any_size=False), False

    def lines(folder: Path) -> str:
        session = f"session = onnxruntime.InferenceSession({f'{folder}/model.onnx'!r})"
        return f'import onnxruntime\n{session}\nz_bar, z = session.run(None, {{"images": images.numpy()}})'

    def refusal(size: int) -> str:
        return f"PyTorch traces this backbone for one size only, here {crop} px" * (not any_size and size != crop)

    files = dict(zip(names, (graph, json.dumps(_settings(encoder), indent=2).encode()), strict=True))
    return write_export(encoder, out, files, lines, refusal)


def _graph(encoder: Encoder, size: tuple[int, int], any_size: bool) -> bytes:
    dynamic = {0: "batch", 2: "height", 3: "width"} if any_size else {0: "batch"}
    program = torch.onnx.export(
        # A copy: what a forward pass keeps of symbolic sizes, as Swin's masks, is of no use afterwards.
        Encoder(encoder.backbone, encoder.config).eval(),
        (torch.zeros(2, 3, *size),),
        input_names=["images"],
        output_names=["z_bar", "z"],
        dynamic_shapes=(dynamic,),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    graph: bytes = program.model_proto.SerializeToString()
    return graph


def _weights(encoder: Encoder) -> dict[str, Tensor]:
    """By timm's names, but Swin's patch merging and ConvNeXt's perceptrons as their authors have them."""
    weights = with_downsampling_moved(encoder.backbone.model.state_dict(), -1)
    return {key: value.flatten(1) if value.ndim == 4 and "mlp." in key else value for key, value in weights.items()}


def _with_qkv_split(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    split = {}
    for key, value in weights.items():
        if "attn.qkv" in key:
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                split[key.replace("qkv", name)] = part
        else:
            split[key] = value
    return split


def _renamed(weights: Mapping[str, Tensor], renames: Renames) -> dict[str, Tensor]:
    renamed = {}
    for key, value in weights.items():
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def _safetensors(weights: Mapping[str, Tensor]) -> bytes:
    return save({key: value.contiguous() for key, value in weights.items()}, metadata={"format": "pt"})


def _swin_facts(encoder: Encoder) -> dict[str, Any]:
    model = encoder.backbone.model
    return {
        "embed_dim": model.patch_embed.proj.out_channels,
        "depths": [len(stage.blocks) for stage in model.layers],
        "num_heads": [stage.blocks[0].attn.num_heads for stage in model.layers],
    }


def _depths_and_dims(encoder: Encoder) -> tuple[list[int], list[int]]:
    """Of the stages of a ConvNeXt."""
    stages = encoder.backbone.model.stages
    return [len(stage.blocks) for stage in stages], [stage.blocks[0].conv_dw.out_channels for stage in stages]


def _call(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _settings(encoder: Encoder) -> dict[str, Any]:
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
