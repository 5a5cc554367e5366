"""What a run starts from instead of random weights: a backbone, copied into the run directory once.

The copy makes the run independent of its source, which may move or change while the run is resumed for weeks; the
source's name and the digest of its weights are part of the run's identity.
"""

import warnings
from typing import NamedTuple

import safetensors.torch
from torch import Tensor

from glsd.config import Config
from glsd.encoder.encoder import model_digest
from glsd.runs.directory import RunDirectory
from glsd.runs.records import RunData, read_record
from glsd.runs.tensors import from_safetensors
from glsd.weights.load import load_model

INIT = "init.safetensors"
"""The backbone that student and teacher of a run start from."""


class InitialWeights(NamedTuple):
    """A backbone to start from."""

    identity: dict[str, str | None]
    """What identifies it in `data.json`."""
    content: bytes | None
    """The file `INIT`; None where the run directory has it already, or starts from random weights."""


def initial_weights(run: RunDirectory, config: Config, name: str) -> InitialWeights:
    """The weights of a model that `load_model` knows; a run that has its copy of them does not ask for the source.

    Warns where the model takes images of another normalisation than the run makes.

    Raises:
        ValueError: there is no such model, or it has another backbone than the configuration.
    """
    saved = read_record(run, RunData)
    if saved is not None and saved.init_from == name and INIT in run.sizes():
        return InitialWeights({"init_from": name, "init_digest": saved.init_digest}, None)
    encoder = load_model(name)
    theirs, ours = encoder.config, config
    if theirs.model.backbone != ours.model.backbone:
        raise ValueError(
            f"--init-from {name} is a {theirs.model.backbone}, and model.backbone is {ours.model.backbone}; "
            f"set model.backbone {theirs.model.backbone}"
        )
    if (theirs.augment.mean, theirs.augment.std) != (ours.augment.mean, ours.augment.std):
        warnings.warn(
            f"--init-from {name} takes images of augment.mean {list(theirs.augment.mean)} and augment.std "
            f"{list(theirs.augment.std)}; this run has {list(ours.augment.mean)} and {list(ours.augment.std)}",
            stacklevel=2,
        )
    state = {key: value.contiguous() for key, value in encoder.backbone.state_dict().items()}
    return InitialWeights({"init_from": name, "init_digest": model_digest(encoder)}, safetensors.torch.save(state))


def read_initial_weights(run: RunDirectory) -> dict[str, Tensor] | None:
    """The `state_dict` of the backbone that the run starts from; None where it starts from random weights.

    Raises:
        ValueError: the run started from a backbone whose copy is gone.
    """
    data = read_record(run, RunData)
    if data is None or data.init_from is None:
        return None
    content = run.read(INIT)
    if content is None:
        raise ValueError(f"{run.uri(INIT)}, the backbone that the run starts from, is gone; rerun the command")
    return from_safetensors(content, run.uri(INIT))
