"""Weights that others trained, as an encoder and as a folder that `export_backbone` writes.

A checkpoint is read without running anything that it holds (`files`). The names of its tensors tell which of its
networks is taken, and under which prefix (`layouts`). timm's own `checkpoint_filter_fn` brings these into timm's names
and shapes, and what then fits is counted (`_fit`).
"""

import argparse
import inspect
import itertools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from glsd.config import Config
from glsd.encoder.encoder import Encoder, build_encoder, with_downsampling_moved
from glsd.models.backbone import build_backbone, timm_architecture
from glsd.weights.files import read_foreign
from glsd.weights.huggingface import from_huggingface, huggingface_family
from glsd.weights.layouts import HEADS, SHOWN, TELLING, Part, backbone_part, beginnings
from glsd.weights.timm import export_backbone

_COMMON = {
    "vit": [
        f"vit_{size}_{kind}"
        for kind in ("patch16_224", "patch8_224", "patch14_dinov2", "patch14_reg4_dinov2")
        for size in ("small", "base")
    ],
    "resnet": ["resnet18", "resnet50"],
    "swin": [f"swin_{size}_patch4_window{window}_224" for size in ("tiny", "small") for window in (7, 14)],
    "convnext": ["convnext_tiny"],
}
"""Backbones that are recognised by their tensors, by family."""
_BEGINNINGS: dict[str, str | None] = {"blocks.": "vit", "layer1.": "resnet", "layers.": "swin", "stages.": "convnext"}
"""How names of a family begin."""

_ENOUGH = 0.95
_FILTER_ERRORS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What timm's filters raise for the weights of another architecture."""


class ConversionReport(NamedTuple):
    """What of a foreign file went where; tensors are counted, each as one, whatever its size."""

    path: str
    """The folder that was written, a path or URI."""
    layout: str
    """Whose layout the file has."""
    backbone: str
    """The timm model that its weights are of."""
    matched: tuple[str, ...]
    """Tensors of the backbone that the file has in the same shape, by timm's names."""
    missing: tuple[str, ...]
    """Tensors of the backbone that the file has not; they are as freshly initialised."""
    unexpected: tuple[str, ...]
    """Tensors of the file's backbone that have no place."""
    mismatched: tuple[str, ...]
    """Tensors of the backbone that the file has in another shape, with both shapes; with any the file is refused."""
    resampled: tuple[str, ...]
    """Tensors that were interpolated to the backbone's size, such as positions of another image size."""
    ignored: dict[str, int]
    """How many tensors each other part of the file has: heads, student, optimiser."""
    replaced: bool = False
    """Whether an earlier export was in the folder."""

    @property
    def num_tensors(self) -> int:
        """Of the backbone."""
        return len(self.matched) + len(self.missing) + len(self.mismatched)

    @property
    def share(self) -> float:
        """Of the backbone's tensors, those that are matched."""
        return len(self.matched) / self.num_tensors

    def __str__(self) -> str:
        """The report as lines for a person; empty lists are left out."""
        num_matched = f"{len(self.matched)} of {self.num_tensors}"
        lines = [f"{self.layout} layout, backbone {self.backbone}: {num_matched} tensors matched"]
        for what in ("missing", "mismatched", "unexpected", "resampled"):
            names: tuple[str, ...] = getattr(self, what)
            if names:
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                lines.append(f"  {len(names)} {what}: {', '.join(names[:SHOWN])}{more}")
        if self.ignored:
            lines.append("  ignored: " + ", ".join(f"{part} ({count})" for part, count in self.ignored.items()))
        if self.replaced:
            lines.append(f"  the earlier export in {self.path} was replaced")
        return "\n".join(lines)


def convert(
    src: str | Path, dst: str | Path, backbone: str | None = None, prefix: str | None = None
) -> ConversionReport:
    """Write the backbone of a foreign file as `export_backbone` does; an earlier export is replaced.

    Images are normalised by ImageNet's mean and standard deviation, as all these codes do; for weights of timm's that
    want another normalisation, name their tag.

    Args:
        src: a file that `torch.save` or safetensors wrote, local or a URI.
        dst: the folder, local or a URI.
        backbone: a timm name; None takes the file's own word or recognises common backbones by their tensors. As
            `NAME.TAG` it brings the mean and standard deviation that timm has for this tag.
        prefix: what stands before the names of the backbone's tensors, such as `encoder_k.`; None finds it.

    Raises:
        ValueError: the file cannot be read, its backbone, the prefix or the tag is not known, a tensor has another
            shape than the backbone's or holds values that are not finite, or fewer than 95 % of the backbone's tensors
            are matched, or `dst` is a file, or a folder that holds something else; nothing is written.
    """
    encoder, report = foreign_encoder(src, backbone, prefix)
    exported = export_backbone(encoder, dst)
    return report._replace(path=exported.path, replaced=exported.replaced)


def foreign_encoder(
    src: str | Path, backbone: str | None = None, prefix: str | None = None
) -> tuple[Encoder, ConversionReport]:
    """The backbone of a foreign file as an encoder, and the report of `convert`, its path being `src`.

    Raises:
        ValueError: as in `convert`.
    """
    given, _, tag = (backbone or "").partition(".")
    normalisation = timm_normalization(given, tag) if tag else {}
    content = read_foreign(src)
    named = given or _named(content)
    part = backbone_part(content, prefix, _without_weights(named).state_dict().keys() if named else (), src)
    encoder, report = encoder_of(part, named or _recognised(part))
    encoder.config = encoder.config.with_overrides(normalisation)
    return encoder, report


def encoder_of(part: Part, name: str) -> tuple[Encoder, ConversionReport]:
    """The encoder of the timm model `name` with these weights, in timm's names or those of a known code.

    Raises:
        ValueError: timm has no such model, a tensor has another shape than its own or is not finite, or fewer than 95 %
            of its tensors are matched.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # what a file lacks is the same in every conversion
        backbone = build_backbone(name)
    try:
        ours = from_huggingface(part.weights, backbone.model.state_dict())
        matched, report = _fit(part._replace(weights=ours), backbone.model, name)
    except _FILTER_ERRORS as error:
        raise ValueError(f"{part.src} ({part.layout} layout) does not fit backbone {name}: {error!r}") from error
    if report.mismatched:
        raise ValueError(
            f"{part.src} does not fit backbone {name}: {len(report.mismatched)} of its tensors have another shape, as "
            f"those of another architecture; name the backbone that they are of\n{report}"
        )
    if report.share < _ENOUGH:
        raise ValueError(
            f"{part.src} does not fit backbone {name}: {report.share:.1%} of its tensors are matched, and "
            f"{_ENOUGH:.0%} must be; name another backbone, or with glsd convert --prefix what stands before its "
            f"tensors' names, which in the file begin with {beginnings(part.weights)}\n{report}"
        )
    config = Config().with_overrides(
        # A backbone has no recipe: no paths are dropped and no local crops made, which not every model can.
        {"model.backbone": name, "model.drop_path": 0.0, "augment.local_sizes": (), "augment.num_local_crops": ()}
    )
    state = {f"model.{name}": value for name, value in (backbone.model.state_dict() | matched).items()}
    return build_encoder(config, state, str(part.src), backbone), report


def timm_normalization(name: str, tag: str = "") -> dict[str, Any]:
    """`augment.mean` and `augment.std` that timm has for weights of a model, by default for those of its first tag.

    Raises:
        ValueError: timm has no such model, or no weights of that tag.
    """
    architecture, _ = timm_architecture(name)
    try:
        facts: Any = timm.get_pretrained_cfg(f"{architecture}.{tag}" if tag else architecture)
    except RuntimeError as error:
        raise ValueError(f"{name}.{tag}: timm has no weights of that tag: {error}") from error
    return {"augment.mean": facts.mean, "augment.std": facts.std}


def _fit(part: Part, model: nn.Module, name: str) -> tuple[dict[str, Tensor], ConversionReport]:
    """The weights that fit the model `name`, in its names and shapes, by timm's own filter where the model has one."""
    weights, head = part.weights, dict[str, Tensor]()
    if "layers.1.downsample.reduction.weight" in weights and "layers.0.downsample.reduction.weight" not in weights:
        # timm up to 1.0.30 takes a Swin for one in the layout of Swin's authors unless it has a classifier.
        head = {key: value for key, value in weights.items() if key.startswith("head.")}
        weights = with_downsampling_moved({key: value for key, value in weights.items() if key not in head}, -1)
    to_timm = getattr(inspect.getmodule(type(model)), "checkpoint_filter_fn", None)
    found: dict[str, Tensor] = head | (dict(weights) if to_timm is None else to_timm(dict(weights), model))
    # The number of batches that a batch norm has seen changes no representation, and old files lack it.
    state = model.state_dict()
    expected = {key: value.shape for key, value in state.items() if not key.endswith("num_batches_tracked")}
    matched = {key: found[key] for key, shape in expected.items() if key in found and found[key].shape == shape}
    others = [key for key in found if key not in state]
    heads = Counter(key.partition(".")[0] for key in others if key.startswith(HEADS))
    report = ConversionReport(
        str(part.src),
        part.layout,
        name,
        matched=tuple(matched),
        missing=tuple(key for key in expected if key not in found),
        unexpected=tuple(key for key in others if not key.startswith(HEADS)),
        mismatched=tuple(
            f"{key} {tuple(found[key].shape)} for {tuple(shape)}"
            for key, shape in expected.items()
            if key in found and key not in matched
        ),
        resampled=tuple(
            key
            for key, value in found.items()
            if key.endswith((*TELLING, "pos_embed")) and key in weights and _resampled(weights[key], value, weights)
        ),
        ignored=dict(part.ignored + heads),
    )
    return matched, report


def _resampled(before: Tensor, after: Tensor, weights: Mapping[str, Tensor]) -> bool:
    if before.numel() == after.numel():  # perhaps reshaped
        return False
    # With register tokens timm keeps the position of the class token within that token.
    moved = "register_tokens" in weights and before.ndim == 3 and before.shape[1] == after.shape[1] + 1
    return not moved


def _named(content: Mapping[str, Any]) -> str | None:
    """The backbone that the arguments of the training name, as EsViT's `cfg` or DINO's `arch` and `patch_size` do."""
    arguments = content.get("args")
    values: Mapping[str, Any] = vars(arguments) if isinstance(arguments, argparse.Namespace) else {}
    architecture = str(values.get("arch", "")).replace("deit_", "vit_")
    for name in (
        Path(str(values.get("cfg", ""))).stem,
        architecture,
        f"{architecture}_patch{values.get('patch_size')}_224",
    ):
        try:
            timm_architecture(name)
        except ValueError:
            continue
        return name
    return None


def _without_weights(name: str) -> nn.Module:
    architecture, model_args = timm_architecture(name)
    with torch.device("meta"):
        model: nn.Module = timm.create_model(architecture, num_classes=0, **model_args)
    return model


def _recognised(part: Part) -> str:
    """The common backbone whose tensors these are, no two having the same; positions may be of another image size."""
    weights, fits = part.weights, dict[str, ConversionReport]()
    families = {family for start, family in _BEGINNINGS.items() if any(key.startswith(start) for key in weights)}
    families.add(huggingface_family(weights))
    for name in itertools.chain(*(names for family, names in _COMMON.items() if family in families)):
        model = _without_weights(name)
        ours = from_huggingface(weights, model.state_dict())
        shapes = {key: value.shape for key, value in model.state_dict().items() if key.endswith(TELLING)}
        as_they_are = {key: value for key, value in ours.items() if shapes.get(key, value.shape) == value.shape}
        try:
            _, fits[name] = _fit(part._replace(weights=as_they_are), model, name)
        except _FILTER_ERRORS:
            continue
        if fits[name].share == 1 and not fits[name].unexpected:
            return name
    nearest = max(fits, key=lambda name: fits[name].share, default=None)
    found = (
        f"they are of none of the common ones, {', '.join(itertools.chain(*_COMMON.values()))}"
        if nearest is None
        else f"the nearest of the common ones is {nearest}, of whose tensors {fits[nearest].share:.0%} are matched"
    )
    raise ValueError(
        f"the backbone of {part.src} is not clear by its tensors: {found}; name it by --backbone, and with glsd "
        f"convert --prefix what stands before its tensors' names, which in the file begin with {beginnings(weights)}"
    )
