"""Reading files of weights without running anything that they hold."""

import argparse
import struct
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from glsd.runs.tensors import ForbiddenClass, from_safetensors, from_torch_save
from glsd.storage.files import open_file, read
from glsd.storage.listing import what_is_at
from glsd.storage.uris import absolute, is_remote

_ZIP, _LEGACY = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How files that `torch.save` writes begin: since 2020, and before."""


def read_foreign(path: str | Path) -> dict[str, Any]:
    """The content of a file of safetensors or of `torch.save`, told by how it begins, on the CPU.

    Nothing in the file is run. Of classes only tensors, plain values, `argparse.Namespace`, paths and numpy's values
    are made; omegaconf's configurations become empty shells.

    Raises:
        ValueError: there is no such file, it is of neither kind or damaged, or it wants a class that is not allowed,
            which the message names and which was not loaded.
    """
    path = absolute(path) if is_remote(str(path)) else str(Path(path).expanduser())
    if what_is_at(path) != "file":
        raise ValueError(f"{path} is not a file; name a file of weights (.safetensors, or written by torch.save)")
    with open_file(path) as stream:
        beginning = stream.read(len(_LEGACY))
    if beginning[8:9] == b"{":  # after the length of the header
        return dict(from_safetensors(read(path)[0], path))
    if not beginning.startswith((_ZIP, _LEGACY)):
        raise ValueError(f"{path} was written neither by torch.save nor by safetensors")
    if _is_torchscript(path):
        raise ValueError(
            f"{path} is a TorchScript archive, a program and not weights; save its tensors, "
            "torch.save(torch.jit.load(...).state_dict(), ...), where you trust it"
        )
    try:
        with open_file(path) as stream, warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
            warnings.simplefilter("ignore", UserWarning)  # of sparse and quantised tensors, which are refused later
            content = from_torch_save(stream, path)
    except ForbiddenClass as error:
        if error.name.startswith("torch.distributed."):
            raise ValueError(sharded_advice(path)) from error
        raise ValueError(
            f"{path} wants {error.name}, which is not on the list of harmless classes and was not loaded; save only "
            "its tensors, torch.save(model.state_dict(), ...), where you trust it"
        ) from error
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{path} holds a {type(content).__name__}, and not tensors by name")
    return dict(content)


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


def sharded_advice(src: str | Path) -> str:
    """What to say of a file that holds a part of each tensor."""
    return (
        f"{src} holds a worker's share of the weights, as FSDP saves them, and not whole tensors; name a file of the "
        "whole model, as DINOv2 writes eval/training_N/teacher_checkpoint.pth"
    )


def _is_torchscript(path: str) -> bool:
    try:
        with open_file(path) as stream, zipfile.ZipFile(stream) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error):
        # Broken archives, and those of versions or compressions that zipfile raises NotImplementedError for, are no
        # TorchScript for this question: torch, which reads them next, says what is wrong.
        return False
