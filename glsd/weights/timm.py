"""An encoder's backbone as a folder that timm loads: `model.safetensors` and `config.json`, nothing pickled.

`timm.create_model("local-dir:FOLDER", pretrained=True, num_classes=0)` reads both; the names are the first that timm
looks for. The folder also holds our own settings, so `load_encoder` gives exactly the encoder that was exported, where
timm's model of the same weights may differ (`glsd.models.swin`). How an export is written and compared is the same for
the other libraries of `targets.py`.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from timm.models.swin_transformer import SwinTransformer

from glsd.encoder.encoder import CONFIG_FILE, WEIGHTS_FILE, Encoder, check_finite, with_downsampling_moved
from glsd.models.backbone import timm_architecture
from glsd.storage.folder import Folder
from glsd.storage.listing import what_is_at
from glsd.storage.replacing import whole_folder
from glsd.storage.uris import absolute, is_remote
from glsd.weights.names import safetensors_bytes

_ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False}  # what lets a timm model take other sizes
_COMPARED_PX = (224, 96)  # the paper's global and local crops


class Difference(NamedTuple):
    """How near another library's features come to ours on two images of noise."""

    largest: float
    """Largest absolute difference of an entry of z̄ (of z too, where the library gives z)."""
    largest_entry: float
    """Largest absolute entry of ours, to judge the difference by."""


class ExportReport(NamedTuple):
    """Where an export lies, how to load it, and how near what is loaded comes to the encoder."""

    path: str
    lines: str
    """Lines of Python that give z̄ of normalised `images`; the comparison ran these very lines."""
    differences: dict[int, Difference]
    """By the side of the images in pixels: 224, 96 and `evaluation.crop`, as far as both models take them."""
    not_taken: dict[int, str]
    """Why the others of these sizes were not compared."""
    note: str
    """Why the library's features differ by more than rounding, if they do."""
    replaced: bool
    """Whether an earlier export was there."""

    def __str__(self) -> str:
        replaced = " (the earlier export there was replaced)" if self.replaced else ""
        return f"{self.path}{replaced}\n{self.statement}\n\n{self.lines}"

    @property
    def largest_difference(self) -> float:
        """Of all sizes that were compared."""
        return max(difference.largest for difference in self.differences.values())

    @property
    def statement(self) -> str:
        """The comparison in words, a line for each size."""
        said = {
            size: f"differs by up to {difference.largest:.1e}, of entries up to {difference.largest_entry:.2g}"
            for size, difference in self.differences.items()
        }
        lines = [f"{size:>4} px: {words}" for size, words in sorted((said | self.not_taken).items(), reverse=True)]
        return "\n".join(lines + [self.note] * bool(self.note))


def export_backbone(encoder: Encoder, out: str | Path) -> ExportReport:
    """Write the backbone for timm; the folder is there whole or not at all, an earlier export is replaced.

    Raises:
        ValueError: `out` is a file, or a folder that holds something else than an earlier export for timm.
    """
    weights = encoder.backbone.model.state_dict()
    is_swin = isinstance(encoder.backbone.model, SwinTransformer)
    if is_swin:
        # timm up to 1.0.30 takes a Swin without classifier for one in the layout of Swin's authors, and later ones
        # recognise that layout; so it is the one that every timm loads.
        weights = with_downsampling_moved(weights, -1)
    files = {
        WEIGHTS_FILE: safetensors_bytes(weights),
        CONFIG_FILE: json.dumps(_timm_config(encoder), indent=2).encode(),
    }
    note = (
        "timm's Swin has a LayerNorm epsilon of 1e-5 where training had 1e-6, and pads maps that are not whole windows "
        "after the shift and not before; glsd.load_encoder of the folder gives exactly the features of the training"
    )
    return write_export(encoder, out, files, _timm_lines(encoder), note=note if is_swin else "")


def write_export(
    encoder: Encoder,
    out: str | Path,
    files: Mapping[str, bytes],
    lines: Callable[[Path], str],
    refusal: Callable[[int], str] = lambda _: "",
    note: str = "",
) -> ExportReport:
    """Write the files of a folder, compare what they give with the encoder, and put the folder in place.

    Args:
        encoder: what is exported.
        out: the folder, local or a URI. A local one is there whole or not at all, and of a remote one the JSON file is
            written last; an earlier export of the same files is replaced.
        files: contents by name; one of them is JSON with a section "glsd", by which a later export knows it.
        lines: Python that loads a folder and makes `z_bar`, and `z` if the library gives it, of `images`.
        refusal: why the library's model cannot take images of a side in pixels; empty where it can.
        note: for the report.

    Raises:
        ValueError: `out` is a file, or a folder that holds something else, there is no size to compare, or weights are
            not finite.
    """
    replaces = refuse_to_replace(out, files)
    check_finite(encoder.backbone, f"the backbone for {out}")
    if is_remote(str(out)):
        return _uploaded(Folder(out), files, partial(write_export, encoder, lines=lines, refusal=refusal, note=note))
    out = Path(os.path.abspath(out))  # noqa: PTH100 - Path.resolve would follow symlinks
    sizes = {*_COMPARED_PX, encoder.config.evaluation.crop}
    reasons = {size: _own_refusal(encoder, size) or refusal(size) for size in sizes}
    not_taken = {size: reason for size, reason in reasons.items() if reason}
    if not sizes - not_taken.keys():
        raise ValueError("; ".join(f"{size} px: {reason}" for size, reason in not_taken.items()))
    with whole_folder(out, out.with_name(f".{out.name}.partial")) as unfinished:
        for name, content in files.items():
            (unfinished / name).write_bytes(content)
        # Before it is in place: what a library cannot load is not an export.
        differences = _compared(encoder, lines(unfinished), sizes - not_taken.keys())
    return ExportReport(str(out), lines(out), differences, not_taken, note, replaces)


def _uploaded(folder: Folder, files: Mapping[str, bytes], export: Callable[..., ExportReport]) -> ExportReport:
    """The export of a remote folder, made and compared here and then sent; libraries load a copy of it."""
    name = Path(folder.path).name
    with TemporaryDirectory() as here:
        report = export(Path(here) / name, files)
        lines = f"# {folder.out} copied to {name}\n{report.lines.replace(f'{here}/', '')}"
    replaced = bool(folder.sizes())
    # What is sent in part is known by its description, and has no weights.
    descriptions = sorted(file for file in files if file.endswith(".json"))
    weights = sorted(files.keys() - descriptions)
    for file in folder.sizes().keys() & weights:
        folder.remove(file)
    for file in (*descriptions, *weights):
        folder.write(file, files[file])
    return report._replace(path=folder.out, lines=lines, replaced=replaced)


def refuse_to_replace(out: str | Path, files: Iterable[str]) -> bool:
    """Refuse a file, and a folder that holds something else than an earlier export of the same files; whether there is
    one.
    """
    uri = absolute(out)
    if (what := what_is_at(uri)) is None:
        return False
    folder = Folder(uri)
    there = folder.sizes().keys() if what == "folder" else None
    descriptions = {file for file in files if file.endswith(".json")}  # are sent first
    is_like_one = there is not None and there in (set(files), descriptions)
    texts = [folder.read(name) or b"" for name in there or () if is_like_one and name.endswith(".json")]
    if there != set() and not any(b'"glsd"' in text for text in texts):
        raise ValueError(f"{out} is not an earlier export and will not be replaced; name an empty or a new folder")
    return bool(there)


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


def _timm_lines(encoder: Encoder) -> Callable[[Path], str]:
    crop = encoder.config.evaluation.crop
    image = torch.zeros(1, 3, crop, crop, device=next(encoder.parameters()).device)
    z_bar = "model.eval()(images)"
    if encoder.backbone.model(image).shape[1] != encoder.backbone.dim:
        # Its head continues after the pooling, as MobileNet's does.
        z_bar = f"model.eval().forward_features(images).mean({(1, 2) if encoder.backbone.channels_last else (2, 3)})"
    return lambda folder: (
        f"import timm\nmodel = timm.create_model({f'local-dir:{folder}'!r}, pretrained=True, num_classes=0)\n"
        f"z_bar = {z_bar}"
    )


def _compared(encoder: Encoder, lines: str, sizes: Iterable[int]) -> dict[int, Difference]:
    """What the lines give, beside the encoder's, on the CPU."""
    encoder = Encoder(encoder.backbone, encoder.config).cpu()
    differences = {}
    for size in sizes:
        images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        names: dict[str, Any] = {"images": images}
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            exec(lines, names)
            pairs = [
                (ours, torch.as_tensor(names[name]))
                for name, ours in zip(("z_bar", "z"), encoder(images), strict=True)
                if name in names
            ]
        differences[size] = Difference(
            max((ours - theirs).abs().max().item() for ours, theirs in pairs),
            max(ours.abs().max().item() for ours, _ in pairs),
        )
    return differences


def _own_refusal(encoder: Encoder, size: int) -> str:
    try:
        encoder.backbone.grid(size)
    except ValueError as error:
        return str(error)
    return ""
