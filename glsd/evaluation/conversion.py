"""Weights that others trained, as an encoder and as a folder that `export_backbone` writes.

A checkpoint is read without running anything that it holds (`read_foreign`). The names of its tensors tell which of its
networks is taken and what stands before the names of the backbone's own (`_backbone_part`). timm's own
`checkpoint_filter_fn` brings these into timm's names and shapes, and what then fits is counted (`_fit`).

`_NETWORKS` lists the layouts that are known. Of several networks it takes the one that the layout's authors evaluate:
the teacher of DINO, the query encoder of MoCo. A backbone alone is found under any prefix, in timm's names, those of
these codes or those of Hugging Face's transformers.
"""

import argparse
import inspect
import itertools
import pickle
import re
import warnings
import zipfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import timm
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from glsd.config import Config
from glsd.evaluation.encoder import Encoder, build_encoder, with_downsampling_moved
from glsd.evaluation.export import export_backbone
from glsd.evaluation.targets import from_huggingface, huggingface_family
from glsd.models.backbone import build_backbone, timm_architecture

FLAT = "flat"
"""Layout of a file that holds a backbone alone."""

_ENOUGH = 0.95
_SHOWN = 5
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

_BEGINNINGS = {"blocks.": "vit", "layer1.": "resnet", "layers.": "swin", "stages.": "convnext"}
"""How names of a family begin."""

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Entries of a checkpoint that hold all of its networks. The average of the weights, where timm keeps one, goes first:
it is what timm evaluates."""

_NETWORKS = {
    r"teacher\.backbone\.": "DINO",
    r"teacher\.": "EsViT",
    r"momentum_backbone\.": "solo-learn",
    r"teacher_backbone\.": "lightly",
    r"teacher_embedding_model\w*\.": "lightly-train",
    r"embedding_model\w*\.": "lightly-train",
    r"backbone\.": "backbone.*",
    r"encoder_q\.": "MoCo",
    r"base_encoder\.": "MoCo v3",
    r"online_(encoder|network|net|backbone)\.": "BYOL",
    r"target_encoder\.": "I-JEPA",
}
"""Layouts by what stands before the names of a network. The first that is found in a file is taken."""

_PREFIX = r"((?:[^.]+\.)*?)"
_PLACED = re.compile(
    _PREFIX + r"(?:embeddings\.patch_embeddings|embedder\.embedder|(?:blocks|layers|layer1|stages)\.\d)"
)
"""A name that a backbone of timm's or of transformers' has, after a prefix."""

_WORKERS = re.compile(r"(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What distributed training and compilation put into names."""

_HEADS = ("head.", "head_dense.", "head_dist.", "fc.", "classifier.", "pooler.", "decoder_", "mask_token")
"""How names of what is no backbone begin, in the layouts that keep it beside the backbone's names."""

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


def convert(
    src: str | Path, dst: str | Path, backbone: str | None = None, prefix: str | None = None
) -> ConversionReport:
    """Write the backbone of a foreign file as `export_backbone` does; an earlier export is replaced.

    Images are normalised by ImageNet's mean and standard deviation, as all these codes do; for weights of timm's that
    want another normalisation, name their tag.

    Args:
        src: a file that `torch.save` or safetensors wrote.
        dst: the folder, a local one.
        backbone: a timm name; None takes the file's own word or recognises common backbones by their tensors. As
            `NAME.TAG` it brings the mean and standard deviation that timm has for this tag.
        prefix: what stands before the names of the backbone's tensors, such as `encoder_k.`; None finds it.

    Raises:
        ValueError: the file cannot be read, its backbone, the prefix or the tag is not known, a tensor has another
            shape than the backbone's or holds values that are not finite, or fewer than 95 % of the backbone's tensors
            are matched, or `dst` is no local folder, or one that holds something else; nothing is written.
    """
    encoder, report = foreign_encoder(src, backbone, prefix)
    return report._replace(path=export_backbone(encoder, dst).path)


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
    part = _backbone_part(content, prefix, _without_weights(named).state_dict().keys() if named else (), src)
    name = named or _recognised(part.weights, src)
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
        ValueError: timm has no such model, a tensor has another shape than its own or is not finite, or fewer than 95 %
            of its tensors are matched.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # what a file lacks is the same in every conversion
        backbone = build_backbone(name)
    try:
        fit = _fit(from_huggingface(weights, backbone.model.state_dict()), backbone.model)
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
            f"be; name another backbone, or with glsd convert --prefix what stands before its tensors' names, "
            f"which in the file begin with {_beginnings(weights)}\n{report}"
        )
    config = Config().with_overrides(
        # A backbone alone has no recipe: no paths are dropped and no local crops made, which not every model can.
        {
            "model.backbone": name,
            "model.drop_path": 0.0,
            "augment.local_sizes": (),
            "augment.num_local_crops": (),
        }
    )
    state = {f"model.{name}": value for name, value in (backbone.model.state_dict() | fit.matched).items()}
    return build_encoder(config, state, str(src), backbone), report


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
    """The content of a file of safetensors or of `torch.save`, told by how it begins, on the CPU.

    Nothing in the file is run. Of classes only tensors, plain values, `argparse.Namespace`, paths and numpy's values
    are made; omegaconf's configurations become empty shells.

    Raises:
        ValueError: there is no such file, it is of neither kind or damaged, or it wants a class that is not allowed,
            which the message names and which was not loaded.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"{path} is no file; name a file of weights (.safetensors, or written by torch.save)")
    with path.open("rb") as stream:
        beginning = stream.read(len(_LEGACY))
    if beginning[8:9] == b"{":  # after the length of the header
        try:
            return dict(safetensors.torch.load_file(path))
        except SafetensorError as error:
            raise ValueError(f"{path} is no file of safetensors, or a damaged one: {error}") from error
    if not beginning.startswith((_ZIP, _LEGACY)):
        raise ValueError(f"{path} was written neither by torch.save nor by safetensors")
    if _is_torchscript(path):
        raise ValueError(
            f"{path} is a TorchScript archive, a program and not weights alone; save its tensors, "
            "torch.save(torch.jit.load(...).state_dict(), ...), where you trust it"
        )
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
            warnings.simplefilter("ignore", UserWarning)  # of sparse and quantised tensors, which are refused later
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted and wanted[1].startswith("torch.distributed."):
            raise ValueError(_sharded(path)) from error
        if wanted:
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


def _backbone_part(
    content: Mapping[str, Any], prefix: str | None, timm_names: Collection[str], src: str | Path
) -> _Part:
    """The tensors of a file's backbone under the names they have within it, the other parts counted.

    Args:
        content: what `read_foreign` gave.
        prefix: what the user says; None finds it.
        timm_names: names that need no prefix; none where the backbone is not known yet.
        src: the file, for messages.

    Raises:
        ValueError: there are no such tensors, or several networks of which none is known.
    """
    state = dict(_named_tensors(content))
    layout, start = _given(state, prefix, src) if prefix else _found(state, timm_names, src)
    weights = {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
    if not weights:
        raise ValueError(f"{src} holds no weights of a backbone; it has {', '.join(map(str, content)) or 'nothing'}")
    _check_plain(weights, src)
    ignored = Counter[str]()
    for key, part in content.items():
        ignored[key.partition(".")[0]] += _num_tensors(part) - len(list(_named_tensors({key: part})))
    for name in state:
        if not name.startswith(start):
            parts = zip(name.split("."), start.split("."), strict=False)
            ignored[next(theirs for theirs, ours in parts if theirs != ours)] += 1
    if "masked_embed" in weights:  # what iBOT puts in the place of a masked patch
        del weights["masked_embed"]
        ignored["masked_embed"] += 1
    derived = ("relative_position_index", "attn_mask", "relative_coords_table")
    weights = {name: value for name, value in weights.items() if not name.endswith(derived)}
    if huggingface_family(weights):
        layout = "Hugging Face"
    return _Part(layout, _without_chunks(weights), +ignored)


def _named_tensors(content: Mapping[Any, Any], outer: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors by their names, those of nested dictionaries by a path with dots, without what `_WORKERS` has added."""
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            yield _WORKERS.sub("", outer + key), value
        elif isinstance(key, str) and isinstance(value, Mapping):
            yield from _named_tensors(value, f"{outer}{key}.")


def _given(state: Mapping[str, Tensor], prefix: str, src: str | Path) -> tuple[str, str]:
    """Layout and prefix where the user names it, with or without the entry of the file that holds all networks."""
    wanted = _WORKERS.sub("", prefix.rstrip(".") + ".")
    for wrapper in ("", *(f"{name}." for name in _WRAPPERS)):
        if any(name.startswith(wrapper + wanted) for name in state):
            return f"{wanted}*", wrapper + wanted
    raise ValueError(
        f"no name of a tensor in {src} begins with --prefix {prefix}; they begin with {_beginnings(state)}"
    )


def _found(state: Mapping[str, Tensor], timm_names: Collection[str], src: str | Path) -> tuple[str, str]:
    """Layout and prefix of the network that is taken."""
    wrappers = [f"{name}." for name in _WRAPPERS]
    for start in (*wrappers, ""):
        if _are_here(timm_names, state, start):
            return FLAT, start
    for network, layout in _NETWORKS.items():
        if prefixes := {match[0] for name in state if (match := re.match(_PREFIX + network, name))}:
            start = _first(prefixes, src)
            return _variant(layout, start, state), start + _inner(state, start, timm_names, src)
    start = next((wrapper for wrapper in wrappers if any(name.startswith(wrapper) for name in state)), "")
    inner = _inner(state, start, timm_names, src)
    return f"{inner}*" if inner else FLAT, start + inner


def _inner(state: Mapping[str, Tensor], start: str, timm_names: Collection[str], src: str | Path) -> str:
    """What stands before a backbone's names among those of one network."""
    if _are_here(timm_names, state, start):
        return ""
    names = (name.removeprefix(start) for name in state if name.startswith(start))
    prefixes = {match[1] for name in names if (match := _PLACED.match(name))}
    outermost = {one for one in prefixes if not any(one.startswith(other) for other in prefixes - {one})}
    return _first(outermost, src, start) if outermost else ""


def _are_here(timm_names: Collection[str], state: Mapping[str, Tensor], start: str) -> bool:
    """Whether most of a timm model's names follow this prefix."""
    return 2 * sum(start + name in state for name in timm_names) > len(timm_names)


def _first(prefixes: Collection[str], src: str | Path, start: str = "") -> str:
    """The only prefix, or that within the first of `_WRAPPERS`.

    Raises:
        ValueError: there are several; the message lists them.
    """
    ranks = {one: [one.startswith(f"{wrapper}.") for wrapper in _WRAPPERS] for one in prefixes}
    first = [one for one, rank in ranks.items() if rank == max(ranks.values())]
    if len(first) > 1:
        named = ", ".join(sorted(start + one for one in first))
        raise ValueError(f"{src} holds several networks, below {named}; name one of these with glsd convert --prefix")
    return first[0]


def _variant(layout: str, start: str, state: Mapping[str, Tensor]) -> str:
    """Which of the layouts of one kind it is."""
    network = start.removesuffix("backbone.")
    if layout == "DINO" and any(name.startswith((f"{network}dino_head.", f"{network}ibot_head.")) for name in state):
        return "DINOv2"
    if layout == "DINO" and f"{start}masked_embed" in state:
        return "iBOT"
    if layout == "backbone.*" and any("student_backbone." in name for name in state):
        return "lightly"
    return layout


def _check_plain(weights: Mapping[str, Tensor], src: str | Path) -> None:
    """Refuse tensors that do not hold one number for each weight.

    Raises:
        ValueError: names the file and the first such tensor.
    """
    for name, value in weights.items():
        if re.search(r"(^|\.)_?flat_param(_\d+)?$", name):
            raise ValueError(_sharded(src))
        if value.is_meta:
            raise ValueError(
                f"{src}: the tensor {name} has no values, as it was saved on the device meta; save the model after "
                "its weights are loaded"
            )
        if value.layout != torch.strided or value.is_quantized:
            kind, dense = ("quantised", "dequantize") if value.is_quantized else ("sparse", "to_dense")
            raise ValueError(f"{src}: the tensor {name} is {kind}; save its {dense}()")


def _sharded(src: str | Path) -> str:
    return (
        f"{src} holds a worker's share of the weights, as FSDP saves them, and not whole tensors; name a file of the "
        "whole model, as DINOv2 writes eval/training_N/teacher_checkpoint.pth"
    )


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _beginnings(names: Collection[str]) -> str:
    """How most of the names begin, for messages."""
    counted = Counter(name.partition(".")[0] + "." for name in names if "." in name)
    return ", ".join(beginning for beginning, _ in counted.most_common(_SHOWN)) or "nothing"


def _without_chunks(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2's `blocks.CHUNK.I` as `blocks.I`: its chunks go on counting, where the stages of others begin anew."""
    named = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): value for name, value in weights.items()}
    return named if len(named) == len(weights) else weights


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
    heads = [key for key in others if key.startswith(_HEADS)]
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
    families = {family for start, family in _BEGINNINGS.items() if any(key.startswith(start) for key in weights)}
    families |= {family for family in [huggingface_family(weights)] if family}
    for name in itertools.chain(*(names for family, names in _COMMON.items() if family in families)):
        model = _without_weights(name)
        ours = from_huggingface(weights, model.state_dict())
        shapes = {key: value.shape for key, value in model.state_dict().items() if key.endswith(_TELLING)}
        as_they_are = {key: value for key, value in ours.items() if shapes.get(key, value.shape) == value.shape}
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
    raise ValueError(
        f"the backbone of {src} is not clear by its tensors: {found}; name it by --backbone, and with glsd "
        f"convert --prefix what stands before its tensors' names, which in the file begin with {_beginnings(weights)}"
    )


def _without_weights(name: str) -> nn.Module:
    architecture, model_args = timm_architecture(name)
    with torch.device("meta"):
        model: nn.Module = timm.create_model(architecture, num_classes=0, **model_args)
    return model
