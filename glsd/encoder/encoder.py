"""The trained teacher as a frozen encoder: image -> (z̄, z), and the preprocessing of the evaluation (Sec. 4.3).

A run trains a student and a teacher, each a backbone with heads; what is evaluated, exported and used is the teacher's
backbone only. `load_encoder` finds it in a run, a checkpoint or an exported folder.
"""

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from glsd.augment.photometric import normalize
from glsd.config import Config, validated
from glsd.encoder.preprocessing import evaluation_crop
from glsd.models.backbone import Backbone, build_backbone
from glsd.models.student_teacher import build_student_teacher
from glsd.record import parsed_json
from glsd.runs.checkpoints import load_checkpoint, newest_checkpoint
from glsd.runs.tensors import from_safetensors
from glsd.storage.files import read
from glsd.storage.listing import what_is_at
from glsd.storage.uris import absolute, joined

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
"""Files of an exported backbone; timm looks for these names in a `local-dir:`."""


class Encoder(nn.Module):
    """A frozen backbone: `z_bar (B, d), z (B, H, W, d) = encoder(images)`; always in evaluation mode.

    `images` are what `normalize` returns, of any size that the backbone takes. The backbone is copied: a teacher that
    is still being trained keeps its weights moving and, for batch norm, its training mode.
    """

    def __init__(self, backbone: Backbone, config: Config):
        super().__init__()
        self.backbone = copy.deepcopy(backbone).requires_grad_(False).eval()
        self.config = config

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch grid_height grid_width dim"]]:
        """z̄ and z of the backbone (not of a head)."""
        z_bar, z = self.backbone(images)
        return z_bar, z

    def train(self, mode: bool = True) -> "Encoder":  # noqa: ARG002 - a frozen encoder has one mode
        """Stay in evaluation mode, also within a module that is trained."""
        return super().train(False)

    def preprocess(self, image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "crop crop 3"]:
        """Bicubic resize of the shorter side to `evaluation.resize`, then the central `evaluation.crop` pixels."""
        return evaluation_crop(image, self.config.evaluation)

    def normalize(self, crops: UInt8[Tensor, "batch height width 3"]) -> Float[Tensor, "batch 3 height width"]:
        """Preprocessed images as float32 of the training's mean and standard deviation, on the device they are on."""
        return normalize(crops.permute(0, 3, 1, 2).float() / 255, self.config.augment)

    def represent(
        self, crops: UInt8[Tensor, "batch height width 3"]
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch grid_height grid_width dim"]]:
        """z̄ and z of preprocessed images from any device, on the encoder's."""
        z_bar, z = self(self.normalize(crops.to(next(self.parameters()).device, non_blocking=True)))
        return z_bar, z


@torch.no_grad()
def embed(encoder: Encoder, batches: Iterable[UInt8[Tensor, "_ height width 3"]]) -> Float[Tensor, "images dim"]:
    """z̄ of preprocessed images, batch after batch, in float32 on the encoder's device."""
    return torch.cat([encoder.represent(crops)[0] for crops in batches])


def build_encoder(
    config: Config, state: Mapping[str, Tensor], source: str, backbone: Backbone | None = None
) -> Encoder:
    """The encoder of these weights, `state` being a `Backbone.state_dict()`: all weights of files come in here.

    `source` is their file, for messages; `backbone`, by default a new one, takes the weights.

    Raises:
        ValueError: the weights are not of `model.backbone`, or some are not finite.
    """
    if backbone is None:
        with torch.random.fork_rng(devices=[]):
            backbone = build_backbone(config.model.backbone, drop_path=0.0)
    try:
        backbone.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"the weights of {source} are not those of model.backbone {config.model.backbone}: {error}"
        ) from error
    check_finite(backbone, source)
    return Encoder(backbone, config)


def check_finite(backbone: Backbone, source: str) -> None:
    """Refuse weights that are NaN or infinite; the message names the source and the first such tensor."""
    for name, value in backbone.model.state_dict().items():
        if num_bad := int((~value.isfinite()).sum()):
            raise ValueError(
                f"{source}: {num_bad:,} of the {value.numel():,} weights of the tensor {name} are NaN or infinite; "
                "use weights from before the training diverged, or an undamaged copy"
            )


def untrained_encoder(config: Config) -> Encoder:
    """The backbone as training starts from it, to compare a trained one with."""
    return Encoder(build_student_teacher(config)[1].backbone, config)


def load_encoder(path: str | Path) -> Encoder:
    """The teacher's backbone of a run (its newest checkpoint), a checkpoint, or a folder that `export_backbone` wrote.

    It may be at a local path or a URI.

    Raises:
        ValueError: there is none of these at the path, or its weights are damaged, not finite or of another backbone.
    """
    place = absolute(path)
    if all(what_is_at(joined(place, name)) == "file" for name in (CONFIG_FILE, WEIGHTS_FILE)):
        return _load_exported(place)
    checkpoint = newest_checkpoint(place) or place
    try:
        state = load_checkpoint(checkpoint)
    except (FileNotFoundError, NotADirectoryError) as error:
        hints = {
            None: ": it does not exist",
            "file": "; a file of weights is named timm:NAME=FILE, or made an exported backbone by glsd convert",
        }
        raise ValueError(
            f"{path} is not a run with a complete checkpoint, a checkpoint, or an exported backbone "
            f"({CONFIG_FILE} and {WEIGHTS_FILE}){hints.get(what_is_at(place), '')}"
        ) from error
    return teacher_encoder(state, checkpoint)


def teacher_encoder(state: Mapping[str, Any], checkpoint: str) -> Encoder:
    """The teacher's backbone of a checkpoint, `state` being what `load_checkpoint` gave; finite weights, or refused."""
    prefix = "backbone."
    teacher = state.get("teacher")
    if not isinstance(teacher, Mapping) or not all(isinstance(value, Tensor) for value in teacher.values()):
        raise ValueError(f"{checkpoint} holds no teacher; name a checkpoint that glsd wrote")
    backbone = {key.removeprefix(prefix): value for key, value in teacher.items() if str(key).startswith(prefix)}
    return build_encoder(_config(state, checkpoint), backbone, checkpoint)


def model_digest(encoder: Encoder) -> str:
    """Sixty-four hexadecimal digits that two encoders share if they give the same representations of the same images.

    They stand for the names, types, shapes and bytes of the backbone's tensors, and for the settings of the model and
    of its preprocessing (`model.backbone`, `augment.mean` and `std`, `evaluation.resize` and `crop`).
    """
    augment, evaluation = encoder.config.augment, encoder.config.evaluation
    facts = [encoder.config.model.backbone, augment.mean, augment.std, evaluation.resize, evaluation.crop]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name, value in sorted(encoder.backbone.state_dict().items()):
        value = value.cpu().contiguous()
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def with_downsampling_moved(weights: Mapping[str, Tensor], by: int) -> dict[str, Tensor]:
    """Swin's weights with the patch merging between two stages named as part of stage i + `by` where it was of i.

    The authors of Swin end a stage with it (0, 1, 2), timm begins the next one with it (1, 2, 3).
    """
    return {
        re.sub(r"^layers\.(\d+)\.downsample", lambda match: f"layers.{int(match[1]) + by}.downsample", key): value
        for key, value in weights.items()
    }


def _load_exported(folder: str) -> Encoder:
    settings, weights_file = joined(folder, CONFIG_FILE), joined(folder, WEIGHTS_FILE)
    facts = parsed_json(read(settings)[0], settings)
    if not isinstance(facts, dict) or "glsd" not in facts:
        raise ValueError(f"{settings} has no glsd section: the folder was not written by export_backbone")
    config = _config(facts["glsd"], f"the glsd section of {settings}")
    weights = from_safetensors(read(weights_file)[0], weights_file)
    if "layers.0.downsample.reduction.weight" in weights:
        weights = with_downsampling_moved(weights, 1)
    state = {f"model.{key}": value for key, value in weights.items()}
    return build_encoder(config, state, weights_file)


def _config(holder: Any, source: str) -> Config:
    """The settings under `config` in what a file holds."""
    try:
        return validated(Config, holder["config"])
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{source} holds no configuration of this version of glsd: {error}") from error
