"""Backbone f: any timm model that gives a feature map or patch tokens, one instance for crops of all sizes (Sec. 3.1).

z is the dense map that the model's last stage gives, z̄ the vector that the model pools from it: mean over the tokens
after the last LayerNorm for Swin, the [CLS] token for ViT, global average pooling for convolutional networks. Weights
are always initialised here, never downloaded.
"""

import copy
import difflib
import inspect
import math
import re
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import timm
import torch
from jaxtyping import Float, Int64
from timm.layers.patch_embed import PatchEmbed
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from glsd.models.drop_path import KeyedDropPath, dropping_paths, keep_scales, replace_drop_paths
from glsd.models.swin import follow_reference

_SWIN_WINDOW = re.compile(r"(swin_[a-z]+_patch\d+_window)(\d+)(_\d+)")
_STRIDE = re.compile(r"(\w+)_stride(8|16)")
_VIT_PATCH = re.compile(r"(\w*vit\w*?)_patch(\d+)_(\d+)")
_ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False}  # whichever of them a model knows
_SIZE_ERRORS = (AssertionError, IndexError, RuntimeError, ValueError)  # what timm and torch raise for a wrong size


@dataclass
class Shapes:
    """What the shapes of an architecture tell, whatever its weights; `build_backbone` finds it once per process."""

    dim: int
    """d, the width of z."""
    pools_itself: bool
    """Whether what the model pools is z̄; some MobileNets widen it."""
    unused: frozenset[str]
    """Parameters that neither z̄ nor z depends on."""
    drops_paths: bool
    """Whether a path can be dropped: without a rate there are no such layers, and some models never call theirs."""
    grids: dict[int, tuple[int, int]] = field(default_factory=dict)
    """(H, W) of z by the size of a square crop; it grows."""


_known_shapes: dict[tuple[str, bool], Shapes] = {}  # by name, and whether there is a drop path


class Backbone(nn.Module):
    """A timm model whose forward gives z̄ and z.

    Attributes:
        model: the timm model; its `state_dict` is what an exported backbone holds.
        name: what it is called in messages.
        dim: d, the width of z̄ and z.
        shapes: what holds for every instance of the architecture.
    """

    model: Any
    drop_path_rates: Tensor

    def __init__(self, model: Any, name: str, shapes: Shapes | None = None) -> None:
        """Adapt `model` in place; its parameters that neither z̄ nor z depends on are frozen.

        `shapes` are those of an earlier instance of the same architecture.

        Raises:
            ValueError: the model gives no feature map, or pools none.
        """
        super().__init__()
        self.name = name
        self.model = model
        if isinstance(model, SwinTransformer):
            follow_reference(model)
        self._drop_paths = replace_drop_paths(model)
        rates = torch.tensor([layer.rate for layer in self._drop_paths])
        self.register_buffer("drop_path_rates", rates, persistent=False)
        self.shapes = shapes or self._shapes()
        self.dim = self.shapes.dim
        for parameter_name, parameter in model.named_parameters():
            if parameter_name in self.shapes.unused:
                # It is in no loss, and distributed training would wait for its gradient.
                parameter.requires_grad_(False)

    def forward(
        self, x: Float[Tensor, "rows 3 height width"], drop_path_keys: Int64[Tensor, " rows"] | None = None
    ) -> tuple[Float[Tensor, "rows dim"], Float[Tensor, "rows h w dim"]]:
        """(z̄, z) of normalised crops; without keys no path is dropped, in training mode neither."""
        dropping = (
            nullcontext()
            if drop_path_keys is None
            else dropping_paths(self._drop_paths, keep_scales(drop_path_keys, self.drop_path_rates))
        )
        with dropping:
            features = self.model.forward_features(x)
        z = self._dense(features, x.shape[-2], x.shape[-1])
        if self.shapes.pools_itself:
            return self.model.forward_head(features, pre_logits=True), z
        return z.mean((1, 2)), z

    @property
    def channels_last(self) -> bool:
        """Whether a map of the timm model is (N, H, W, C)."""
        return getattr(self.model, "output_fmt", "NCHW") == "NHWC"

    def grid(self, size: int) -> tuple[int, int]:
        """(H, W) of z for square crops of `size` px.

        Raises:
            ValueError: the backbone cannot take such crops.
        """
        if size not in self.shapes.grids:
            try:
                self.shapes.grids[size] = self._probe(size)
            except _SIZE_ERRORS as error:
                raise ValueError(
                    f"backbone {self.name} cannot take crops of {size} px; it takes {self._sizes_near(size)}"
                ) from error
        return self.shapes.grids[size]

    def check_crop_sizes(self, sizes: Iterable[int]) -> None:
        """Refuse crops that the model cannot take before any is made.

        Raises:
            ValueError: names the size, the backbone and the nearest sizes that are right.
        """
        for size in sizes:
            self.grid(size)

    def _shapes(self) -> Shapes:
        size = int(self.model.pretrained_cfg["input_size"][-1])
        rates: list[float] = []

        def note(module: nn.Module, _: Any) -> None:
            if isinstance(module, KeyedDropPath):
                rates.append(module.rate)

        with torch.inference_mode(False), torch.enable_grad():
            with register_module_forward_pre_hook(note):
                parameters, z_bar, z = self._on_meta(size)
            _, height, width, dim = z.shape
            if height * width < 2:  # PiT gives only its class token
                raise self._without_map()
            pools_itself = z_bar.shape[-1] == dim
            outputs = [z_bar.sum(), z.sum()] if pools_itself else [z.sum()]
            gradients: tuple[Tensor | None, ...] = torch.autograd.grad(outputs, parameters, allow_unused=True)
        names = (name for name, _ in self.model.named_parameters())
        unused = (name for name, gradient in zip(names, gradients, strict=True) if gradient is None)
        return Shapes(dim, pools_itself, frozenset(unused), any(rates), {size: (height, width)})

    def _probe(self, size: int) -> tuple[int, int]:
        with torch.no_grad():
            _, _, z = self._on_meta(size)
        return z.shape[1], z.shape[2]

    def _on_meta(self, size: int) -> tuple[list[Tensor], Tensor, Tensor]:
        """Stand-ins of the parameters, and the z̄ and z that they give: a forward pass of shapes only."""
        parameters = [torch.empty_like(parameter, device="meta").requires_grad_() for parameter in self.parameters()]
        memo: dict[int, Any] = {id(buffer): buffer.to("meta") for buffer in self.model.buffers()}
        memo |= {id(real): stand_in for real, stand_in in zip(self.parameters(), parameters, strict=True)}
        model = copy.deepcopy(self.model, memo).eval()
        features = model.forward_features(torch.empty(1, 3, size, size, device="meta", dtype=parameters[0].dtype))
        refusal = ValueError(f"backbone {self.name} has no head that pools its feature map")
        if "pre_logits" not in inspect.signature(model.forward_head).parameters:
            raise refusal
        try:
            z_bar = model.forward_head(features, pre_logits=True)
        except NotImplementedError as error:
            # timm's encoders without a head (MobileNetV5, Gemma 4, DeepSeek) have this method and raise in it, so only
            # the call tells.
            raise refusal from error
        return parameters, z_bar, self._dense(features, size, size)

    def _dense(self, features: Any, height: int, width: int) -> Float[Tensor, "rows h w dim"]:
        """The map among what `forward_features` gave, channels last."""
        if isinstance(features, Tensor) and features.ndim == 4:
            return features if self.channels_last else features.permute(0, 2, 3, 1)
        if isinstance(features, Tensor) and features.ndim == 3:
            # VOLO has a class token and no number of them.
            prefix: int = getattr(
                self.model, "num_prefix_tokens", int(getattr(self.model, "cls_token", None) is not None)
            )
            tokens = features[:, prefix:]
            embed = getattr(self.model, "patch_embed", None)
            side = math.isqrt(tokens.shape[1])
            grid = embed.dynamic_feat_size((height, width)) if isinstance(embed, PatchEmbed) else (side, side)
            if math.prod(grid) == tokens.shape[1]:
                return tokens.reshape(tokens.shape[0], *grid, tokens.shape[2])
        raise self._without_map()

    def _without_map(self) -> ValueError:
        return ValueError(
            f"backbone {self.name} gives no feature map: forward_features must return a map (N, C, H, W), (N, H, W, C) "
            "or patch tokens (N, L, C) in a grid, as timm's Swin, ViT, ResNet and ConvNeXt do"
        )

    def _sizes_near(self, size: int) -> str:
        """The nearest multiples of the patch or the stride, or else the size that the model was made for."""
        made_for, (height, _) = next(iter(self.shapes.grids.items()))
        embed = getattr(self.model, "patch_embed", None)
        unit = embed.patch_size[0] if isinstance(embed, PatchEmbed) else made_for // height
        below = (size - 1) // unit * unit
        found = []
        for other in filter(None, (below, below + unit)):
            with suppress(*_SIZE_ERRORS):
                self._probe(other)
                found.append(f"{other} px")
        return " or ".join(found) or f"{made_for} px"


def build_backbone(name: str, drop_path: float = 0.0) -> Backbone:
    """A freshly initialised backbone by its timm name, from torch's ambient random numbers.

    `swin_SIZE_patch4_windowN_224` is timm's Swin with windows of N tokens for every N (Swin-T/14 of Table 3 is
    `swin_tiny_patch4_window14_224`), `NAME_patchP_S` its ViT with patches of P px for images of S px, and
    `NAME_strideN` a convolutional network whose last map is N (8 or 16) times smaller than the image, dilated, as small
    images need it. `drop_path` is the rate of the deepest layer.

    Raises:
        ValueError: no such model (the nearest spelling is named), no feature map, or no paths to drop.
    """
    architecture, model_args = timm_architecture(name)
    model = _create(architecture, model_args, {**_ANY_SIZE, "drop_path_rate": drop_path})
    known = name, drop_path > 0
    backbone = Backbone(model, name, _known_shapes.get(known))
    _known_shapes[known] = backbone.shapes
    if drop_path and not backbone.shapes.drops_paths:
        raise ValueError(f"model.drop_path {drop_path}: backbone {name} has no paths to drop; set model.drop_path 0")
    return backbone


def timm_architecture(name: str) -> tuple[str, dict[str, Any]]:
    """The timm model and its arguments that a backbone's name stands for; a tag of weights is not part of it.

    Raises:
        ValueError: timm has no such model; the nearest spelling is named.

    >>> timm_architecture("swin_tiny_patch4_window14_224")
    ('swin_tiny_patch4_window7_224', {'window_size': 14})
    >>> timm_architecture("vit_tiny_patch8_64")
    ('vit_tiny_patch16_224', {'patch_size': 8, 'img_size': 64})
    >>> timm_architecture("resnet18_stride8")
    ('resnet18', {'output_stride': 8})
    """
    base, _, weights = name.partition(".")
    if timm.is_model(base) and not weights:
        return name, {}
    if match := _SWIN_WINDOW.fullmatch(name):
        before, window, after = match.groups()
        for relative in timm.list_models(f"{before}*{after}"):
            return relative, {"window_size": int(window)}
    if match := _VIT_PATCH.fullmatch(name):
        model, patch, size = match.groups()
        for relative in filter(timm.is_model, (model, f"{model}_patch16_224")):
            return relative, {"patch_size": int(patch), "img_size": int(size)}
    if (match := _STRIDE.fullmatch(name)) and timm.is_model(match[1]):
        return match[1], {"output_stride": int(match[2])}
    nearest = difflib.get_close_matches(base, timm.list_models(), n=1)
    raise ValueError(
        f"model.backbone: timm has no model {name!r}" + (f"; did you mean {nearest[0]!r}?" if nearest else "")
    )


def _create(architecture: str, model_args: dict[str, Any], optional: dict[str, Any]) -> nn.Module:
    """The timm model with as many of the optional arguments as it accepts; timm does not say which these are."""
    choices = [dict(chosen) for n in range(len(optional), 0, -1) for chosen in combinations(optional.items(), n)]
    for chosen in choices:
        with suppress(TypeError):
            model: nn.Module = timm.create_model(architecture, num_classes=0, **model_args, **chosen)
            return model
    plain: nn.Module = timm.create_model(architecture, num_classes=0, **model_args)
    return plain
