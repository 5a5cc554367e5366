"""Weights that others trained, as an encoder and as a folder that `export_backbone` writes.

A checkpoint is read without running anything that it holds (`read_foreign`), its layout tells which of its networks is
the teacher and which names are the backbone's (`_backbone_part`), timm's own `checkpoint_filter_fn` brings these into
timm's names and shapes, and what then fits is counted (`_fit`). Layouts, with the names that tell them apart:

- this paper's code and EsViT: `teacher` holds a Swin, its heads beside it (`patch_embed.*`, `layers.*`, `head.*`);
- DINO, iBOT, DINOv2: `teacher` holds `backbone.*` and heads; DINOv2's blocks may come in chunks, `blocks.CHUNK.I`;
- lightly: `student_backbone.*`, and the teacher is `backbone.*` or `teacher_backbone.*`;
- solo-learn: `backbone.*`, and the teacher is `momentum_backbone.*`;
- a backbone alone, in timm's names or those of the codes above, bare or within `state_dict` or `model`.
"""

import argparse
import inspect
import itertools
import pickle
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import timm
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from glsd.config import Config
from glsd.evaluation.encoder import Encoder, with_downsampling_moved
from glsd.evaluation.export import export_backbone
from glsd.models import build_backbone, timm_architecture

FLAT = "flat"
"""Layout of a file that holds a backbone alone."""

_ENOUGH = 0.95
_SHOWN = 5
_COMMON = {
    "blocks.": [
        f"vit_{size}_{kind}"
        for kind in ("patch16_224", "patch8_224", "patch14_dinov2", "patch14_reg4_dinov2")
        for size in ("small", "base")
    ],
    "layer1.": ["resnet18", "resnet50"],
    "layers.": [f"swin_{size}_patch4_window{window}_224" for size in ("tiny", "small") for window in (7, 14)],
    "stages.": ["convnext_tiny"],
}
"""Backbones that are recognised by their tensors, by how names of their family begin."""

_TELLING = ("patch_embed.proj.weight", "relative_position_bias_table")
"""Tensors whose shape tells backbones apart, though timm's filters interpolate them as they do positions."""

_FILTER_ERRORS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What timm's filters raise for the weights of another architecture."""

_ZIP, _LEGACY = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How files that `torch.save` writes begin: since 2020, and before."""


class ConversionReport(NamedTuple):
    """What of a foreign file went where; tensors are counted, each as one, whatever its size."""

    path: Path
    """The folder that was written."""
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

    def __str__(self) -> str:
        """The report as lines for a person; empty lists are left out."""
        total = len(self.matched) + len(self.missing) + len(self.mismatched)
        lines = [f"{self.layout} layout, backbone {self.backbone}: {len(self.matched)} of {total} tensors matched"]
        for what in ("missing", "mismatched", "unexpected", "resampled"):
            names: tuple[str, ...] = getattr(self, what)
            if names:
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                lines.append(f"  {len(names)} {what}: {', '.join(names[:_SHOWN])}{more}")
        if self.ignored:
            lines.append("  ignored: " + ", ".join(f"{part} ({count})" for part, count in self.ignored.items()))
        return "\n".join(lines)


def convert(src: str | Path, dst: str | Path, backbone: str | None = None) -> ConversionReport:
    """Write the teacher's backbone of a foreign file as `export_backbone` does; an earlier export is replaced.

    Images are normalised by ImageNet's mean and standard deviation, as all these codes do; for weights of timm's that
    want another normalisation, name their tag.

    Args:
        src: a file that `torch.save` or safetensors wrote.
        dst: the folder, a local one.
        backbone: a timm name; None takes the file's own word or recognises common backbones by their tensors. As
            `NAME.TAG` it brings the mean and standard deviation that timm has for this tag.

    Raises:
        ValueError: the file cannot be read, its backbone or the tag is not known, a tensor has another shape than the
            backbone's, or fewer than 95 % of the backbone's tensors are matched, or `dst` is no local folder, or one
            that holds something else; nothing is written.
    """
    encoder, report = foreign_encoder(src, backbone)
    return report._replace(path=export_backbone(encoder, dst).path)


def foreign_encoder(src: str | Path, backbone: str | None = None) -> tuple[Encoder, ConversionReport]:
    """The teacher's backbone of a foreign file as an encoder, and the report of `convert`, its path being `src`.

    Warns where tensors have no counterpart, on either side.

    Raises:
        ValueError: as in `convert`.
    """
    given, _, tag = (backbone or "").partition(".")
    normalisation = timm_normalization(given, tag) if tag else {}
    content = read_foreign(src)
    part = _backbone_part(content)
    if not part.weights:
        raise ValueError(f"{src} holds no weights of a backbone; it has {', '.join(map(str, content)) or 'nothing'}")
    name = given or _named(content) or _recognised(part.weights, src)
    encoder, report = encoder_of(part.weights, name, src, part.layout, part.ignored)
    encoder.config = encoder.config.with_overrides(normalisation)
    return encoder, report


def encoder_of(
    weights: Mapping[str, Tensor],
    name: str,
    src: str | Path,
    layout: str = FLAT,
    ignored: Mapping[str, int] | None = None,
) -> tuple[Encoder, ConversionReport]:
    """The encoder of the timm model `name` with these weights, in timm's names or those of a known code.

    Raises:
        ValueError: timm has no such model, a tensor has another shape than its own, or fewer than 95 % of its tensors
            are matched.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # what a file lacks is the same in every conversion
        backbone = build_backbone(name)
    try:
        fit = _fit(weights, backbone.model)
    except _FILTER_ERRORS as error:
        raise ValueError(f"{src} ({layout} layout) does not fit backbone {name}: {error!r}") from error
    report = ConversionReport(
        Path(src),
        layout,
        name,
        tuple(fit.matched),
        tuple(fit.missing),
        tuple(fit.unexpected),
        tuple(fit.mismatched),
        tuple(fit.resampled),
        dict(Counter(ignored or {}) + fit.heads),
    )
    if fit.mismatched:
        raise ValueError(
            f"{src} does not fit backbone {name}: {len(fit.mismatched)} of its tensors have another shape, as those of "
            f"another architecture; name the backbone that they are of\n{report}"
        )
    if fit.share < _ENOUGH:
        raise ValueError(
            f"{src} does not fit backbone {name}: {fit.share:.1%} of its tensors are matched, and {_ENOUGH:.0%} must "
            f"be; name another backbone\n{report}"
        )
    if fit.missing or fit.unexpected:
        warnings.warn(f"{src} does not fit its backbone completely\n{report}", stacklevel=2)
    backbone.model.load_state_dict(backbone.model.state_dict() | fit.matched)
    config = Config().with_overrides(
        # A backbone alone has no recipe: no paths are dropped and no local crops made, which not every model can.
        {
            "model.backbone": name,
            "model.drop_path": 0.0,
            "augment.local_sizes": (),
            "augment.num_local_crops": (),
        }
    )
    return Encoder(backbone, config), report


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


def read_foreign(path: str | Path) -> dict[str, Any]:
    """The content of a file of safetensors (by its suffix) or of `torch.save`, on the CPU.

    Nothing in the file is run. Of classes only tensors, plain values, `argparse.Namespace`, paths and numpy's values
    are made; omegaconf's configurations become empty shells.

    Raises:
        ValueError: there is no such file, it is of neither kind or damaged, or it wants a class that is not allowed,
            which the message names and which was not loaded.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"{path} is no file; name a file of weights (.safetensors, or written by torch.save)")
    if path.suffix == ".safetensors":
        try:
            return dict(safetensors.torch.load_file(path))
        except SafetensorError as error:
            raise ValueError(f"{path} is no file of safetensors, or a damaged one: {error}") from error
    with path.open("rb") as stream:
        if not stream.read(len(_LEGACY)).startswith((_ZIP, _LEGACY)):
            raise ValueError(f"{path} was not written by torch.save; a file of safetensors must end in .safetensors")
    try:
        with torch.serialization.safe_globals(_harmless()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if wanted := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} wants {wanted[1]}, which is not on the list of harmless classes and was not loaded; save its "
                "tensors alone, torch.save(model.state_dict(), ...), where you trust it"
            ) from error
        raise ValueError(f"{path} is damaged, or holds more than tensors and plain values") from error
    except (EOFError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{path} holds a {type(content).__name__}, and not tensors by name")
    return dict(content)


class _Part(NamedTuple):
    """The teacher's backbone within a file."""

    layout: str
    weights: dict[str, Tensor]
    ignored: Counter[str]


class _Fit(NamedTuple):
    """Weights in timm's names against a model; see `ConversionReport`."""

    matched: dict[str, Tensor]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]
    resampled: list[str]
    heads: Counter[str]

    @property
    def share(self) -> float:
        """Of the backbone's tensors, those that are matched."""
        return len(self.matched) / (len(self.matched) + len(self.missing) + len(self.mismatched))


class _Shell:
    """Stands for a class of a package that need not be installed; it takes attributes and does nothing."""


def _harmless() -> list[Any]:
    shells = (
        *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "typing.Any"),
        *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata"),
        *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Boolean", "Float", "Integer", "Path", "String")),
    )
    multiarray: list[Any] = [np.zeros(0).__reduce__()[0], np.float32(0).__reduce__()[0]]
    return [
        argparse.Namespace,
        defaultdict,
        *((kind, f"builtins.{kind.__name__}") for kind in (bool, dict, float, int, list, str, tuple)),
        *((PurePosixPath, f"pathlib{module}.PosixPath") for module in ("", "._local")),
        *(np.dtype, np.ndarray, *{type(np.dtype(code)) for code in np.typecodes["All"] if code != "O"}),
        *((part, f"numpy.{core}.multiarray.{part.__name__}") for part in multiarray for core in ("core", "_core")),
        *((_Shell, name) for name in shells),
    ]


def _backbone_part(content: Mapping[str, Any]) -> _Part:
    """Which tensors of a file are the teacher's backbone, under the names they have within it."""
    if isinstance(content.get("teacher"), Mapping):
        ignored = _counted({key: value for key, value in content.items() if key != "teacher"})
        teacher = _plain(content["teacher"])
        if not any(name.startswith("backbone.") for name in teacher):
            return _part("EsViT", teacher, "", ignored)
        if any(name.startswith(("dino_head.", "ibot_head.")) for name in teacher):
            layout = "DINOv2"
        else:
            layout = "iBOT" if "ibot_loss" in content or "backbone.masked_embed" in teacher else "DINO"
        return _part(layout, teacher, "backbone.", ignored)
    # An average of the weights, where timm keeps one, is what it evaluates.
    for wrapper in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(content.get(wrapper), Mapping):
            ignored = _counted({key: value for key, value in content.items() if key != wrapper})
            return _module_part(_plain(content[wrapper]), ignored)
    return _module_part(_plain(content), Counter())


def _module_part(state: dict[str, Tensor], ignored: Counter[str]) -> _Part:
    modules = {name.partition(".")[0] for name in state}
    if "momentum_backbone" in modules:
        return _part("solo-learn", state, "momentum_backbone.", ignored)
    if "teacher_backbone" in modules:
        return _part("lightly", state, "teacher_backbone.", ignored)
    if "backbone" in modules:
        return _part("lightly" if "student_backbone" in modules else "backbone.*", state, "backbone.", ignored)
    return _part(FLAT, state, "", ignored)


def _part(layout: str, state: dict[str, Tensor], prefix: str, ignored: Counter[str]) -> _Part:
    """The tensors below the prefix; the others are counted by the first part of their names."""
    weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if any(name.startswith("vit.") for name in weights):  # lightly's wrapper of a timm ViT
        prefix += "vit."
        weights = {name.removeprefix("vit."): value for name, value in weights.items() if name.startswith("vit.")}
    ignored = ignored + Counter(name.partition(".")[0] for name in state if not name.startswith(prefix))
    if "masked_embed" in weights:  # what iBOT puts in the place of a masked patch
        del weights["masked_embed"]
        ignored["masked_embed"] += 1
    derived = ("relative_position_index", "attn_mask", "relative_coords_table")
    weights = {name: value for name, value in weights.items() if not name.endswith(derived)}
    return _Part(layout, _without_chunks(weights), ignored)


def _without_chunks(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2's `blocks.CHUNK.I` as `blocks.I`: its chunks go on counting, where the stages of others begin anew."""
    named = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): value for name, value in weights.items()}
    return named if len(named) == len(weights) else weights


def _plain(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors, without what distributed training and compilation put before their names."""
    return {
        re.sub(r"^(module\.|_orig_mod\.)+", "", name): value
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }


def _counted(parts: Mapping[str, Any]) -> Counter[str]:
    """How many tensors each part holds, at any depth; parts without any are left out."""
    return +Counter({name: _num_tensors(part) for name, part in parts.items()})


def _num_tensors(tree: Any) -> int:
    if isinstance(tree, Mapping):
        return sum(map(_num_tensors, tree.values()))
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return sum(map(_num_tensors, tree))
    return int(isinstance(tree, Tensor))


def _fit(weights: Mapping[str, Tensor], model: nn.Module) -> _Fit:
    """Bring weights into the model's names and shapes, by timm's own filter where the model has one, and compare."""
    head: dict[str, Tensor] = {}
    if "layers.1.downsample.reduction.weight" in weights and "layers.0.downsample.reduction.weight" not in weights:
        # timm up to 1.0.30 takes a Swin for one in the layout of Swin's authors unless it has a classifier.
        head = {key: value for key, value in weights.items() if key.startswith("head.")}
        weights = with_downsampling_moved({key: value for key, value in weights.items() if key not in head}, -1)
    to_timm = getattr(inspect.getmodule(type(model)), "checkpoint_filter_fn", None)
    found: dict[str, Tensor] = head | (dict(weights) if to_timm is None else to_timm(dict(weights), model))
    # The number of batches that a batch norm has seen changes no representation, and old files lack it.
    state = model.state_dict()
    expected = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    others = [key for key in found if key not in state]
    heads = [key for key in others if key.startswith(("head.", "head_dense.", "head_dist.", "fc.", "classifier."))]
    return _Fit(
        matched={key: found[key] for key in expected if key in found and found[key].shape == expected[key].shape},
        missing=[key for key in expected if key not in found],
        unexpected=[key for key in others if key not in heads],
        mismatched=[
            f"{key} {tuple(found[key].shape)} for {tuple(expected[key].shape)}"
            for key in expected
            if key in found and found[key].shape != expected[key].shape
        ],
        resampled=[
            key
            for key, value in found.items()
            if key.endswith((*_TELLING, "pos_embed")) and key in weights and _resampled(weights[key], value, weights)
        ],
        heads=Counter(key.partition(".")[0] for key in heads),
    )


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


def _recognised(weights: Mapping[str, Tensor], src: str | Path) -> str:
    """The common backbone whose tensors these are, no two having the same; positions may be of another image size.

    Raises:
        ValueError: there is none; the message names the nearest one.
    """
    fits: dict[str, _Fit] = {}
    families = [names for start, names in _COMMON.items() if any(key.startswith(start) for key in weights)]
    for name in itertools.chain(*families):
        architecture, model_args = timm_architecture(name)
        with torch.device("meta"):
            model = timm.create_model(architecture, num_classes=0, **model_args)
        shapes = {key: value.shape for key, value in model.state_dict().items() if key.endswith(_TELLING)}
        as_they_are = {key: value for key, value in weights.items() if shapes.get(key, value.shape) == value.shape}
        try:
            fits[name] = _fit(as_they_are, model)
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
    raise ValueError(f"the backbone of {src} is not clear by its tensors: {found}; name it by --backbone")
