"""Whose checkpoint a file is, by the names of its tensors, and which of its networks is taken.

`_NETWORKS` lists the layouts that are known. Of several networks the one that the layout's authors evaluate is taken:
the teacher of DINO, the query encoder of MoCo. A single backbone is found under any prefix, in timm's names, those of
these codes or those of transformers.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glsd.weights.files import sharded_advice
from glsd.weights.huggingface import huggingface_family

FLAT = "flat"
"""Layout of a file that holds only a backbone."""


class Part(NamedTuple):
    """The teacher's backbone within a file."""

    src: str | Path
    """The file, for messages."""
    layout: str
    weights: Mapping[str, Tensor]
    ignored: Counter[str]
    """How many tensors each other part has."""


def backbone_part(content: Mapping[str, Any], prefix: str | None, timm_names: Collection[str], src: str | Path) -> Part:
    """The tensors of a file's backbone under the names they have within it, the other parts counted.

    Args:
        content: what `read_foreign` gave.
        prefix: what the user says; None finds it.
        timm_names: of the backbone, which need no prefix; none where it is not known yet.
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
    # DINOv2's blocks.CHUNK.I as blocks.I: its chunks number all blocks, the stages of others begin at 0.
    whole = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): value for name, value in weights.items()}
    return Part(src, layout, whole if len(whole) == len(weights) else weights, +ignored)


def _num_tensors(tree: Any) -> int:
    if isinstance(tree, Mapping):
        return sum(map(_num_tensors, tree.values()))
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return sum(map(_num_tensors, tree))
    return int(isinstance(tree, Tensor))


SHOWN = 5
"""Most names that a message lists."""
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
HEADS = ("head.", "head_dense.", "head_dist.", "fc.", "classifier.", "pooler.", "decoder_", "mask_token")
"""How names of what is not the backbone begin, in the layouts that keep it beside the backbone's names."""
TELLING = ("patch_embed.proj.weight", "relative_position_bias_table")
"""Tensors whose shape tells backbones apart, though timm's filters interpolate them as they do positions."""


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
    raise ValueError(f"no name of a tensor in {src} begins with --prefix {prefix}; they begin with {beginnings(state)}")


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
    """The only prefix, or that within the first of `_WRAPPERS`; several are refused, and listed."""
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
    """Refuse tensors that do not hold one number for each weight."""
    for name, value in weights.items():
        if re.search(r"(^|\.)_?flat_param(_\d+)?$", name):
            raise ValueError(sharded_advice(src))
        if value.is_meta:
            raise ValueError(
                f"{src}: the tensor {name} has no values, as it was saved on the device meta; save the model after "
                "its weights are loaded"
            )
        if value.layout != torch.strided or value.is_quantized:
            kind, dense = ("quantised", "dequantize") if value.is_quantized else ("sparse", "to_dense")
            raise ValueError(f"{src}: the tensor {name} is {kind}; save its {dense}()")


def beginnings(names: Collection[str]) -> str:
    """How most of the names begin, for messages."""
    counted = Counter(name.partition(".")[0] + "." for name in names if "." in name)
    return ", ".join(beginning for beginning, _ in counted.most_common(SHOWN)) or "nothing"
