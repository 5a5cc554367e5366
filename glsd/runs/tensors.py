"""Files of tensors, of which nothing is run and no class is made but those that are allowed."""

import io
import pickle
import re
import struct
from typing import IO, Any, Final, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

# What the unpickler and the reader of archives raise on content that torch.save did not write.
_DAMAGED: Final = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, AttributeError, LookupError),
    *(AssertionError, ArithmeticError, MemoryError, struct.error),
)


class ForbiddenClass(ValueError):
    """A file wants a class that is not allowed; `name` is its name."""

    def __init__(self, source: str, name: str) -> None:
        super().__init__(f"{source} wants {name}, which is no tensor or plain value, and was not loaded")
        self.name = name


def from_torch_save(file: io.BufferedIOBase, source: str) -> Any:
    """What `torch.save` wrote, on the CPU, of tensors, plain values and what `torch.serialization.safe_globals` allows.

    Raises:
        ForbiddenClass: it wants another class.
        ValueError: it is damaged; the message names `source`.
    """
    try:
        return torch.load(cast(IO[bytes], file), map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if wanted:
            raise ForbiddenClass(source, wanted[1]) from error
        raise ValueError(f"{source} is damaged, or holds more than tensors and plain values: {error}") from error


def from_safetensors(content: bytes, source: str) -> dict[str, Tensor]:
    """The tensors of a file of safetensors; a ValueError names `source` where it is damaged."""
    try:
        return dict(safetensors.torch.load(content))
    except (SafetensorError, *_DAMAGED) as error:
        raise ValueError(f"{source} is not a file of safetensors, or is damaged: {error}") from error
