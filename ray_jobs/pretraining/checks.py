"""What no run can do, refused before anything is started."""

import torch
from torch import nn

from glsd.config import Config
from glsd.data.sources import Sources
from glsd.data.units import MAX_UNIT_BYTES, unit_bytes
from glsd.experiments import ScaledConfig
from glsd.models.backbone import Backbone, build_backbone
from glsd.runs.directory import RunDirectory
from glsd.storage.uris import check_uri
from ray_jobs.pretraining.options import PretrainOptions

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def check_call(run: RunDirectory, config: Config, data: Sources, options: PretrainOptions) -> None:
    """Refuse what can be refused before the images are read; a ValueError says what would fit."""
    if not isinstance(config, ScaledConfig):
        run.check_config(config)
    for sources in (data, options.knn_data):
        run.check_apart(sources)
    if options.init_from is not None:
        check_uri(options.init_from)
    check_sizes(config)


def check_sizes(config: Config) -> None:
    """Refuse what no run can do, before anything is started.

    Raises:
        ValueError: the backbone is unknown or cannot take the crops, or a unit is too large for the stream.
    """
    backbone = _without_weights(config)
    backbone.check_crop_sizes([*(size for size, _ in config.augment.groups), config.evaluation.crop])
    if unit_bytes(config) > MAX_UNIT_BYTES:
        fitting = config.data.unit_size * MAX_UNIT_BYTES // unit_bytes(config)
        fitting = max((size for size in range(1, fitting + 1) if config.optim.batch_size % size == 0), default=0)
        if not fitting:
            raise ValueError("the crops of one image do not fit into a unit; use a smaller augment.global_size")
        raise ValueError(
            f"data.unit_size {config.data.unit_size} makes units of {unit_bytes(config) / 2**20:.0f} MiB, and the "
            f"stream takes {MAX_UNIT_BYTES / 2**20:.0f} MiB; use data.unit_size {fitting}"
        )


def batch_norm_note(config: Config, workers: int, gpu: bool) -> str | None:
    """What a user should know of a backbone with batch norm that several workers train on CPUs."""
    if workers == 1 or gpu or not any(isinstance(layer, _BATCH_NORMS) for layer in _without_weights(config).modules()):
        return None
    return (
        f"{config.model.backbone} has batch norm, which is not synchronised on CPUs: each of the {workers} workers "
        f"normalises by its own units of {config.data.unit_size} images, so their number changes the result"
    )


def _without_weights(config: Config) -> Backbone:
    with torch.device("meta"):
        return build_backbone(config.model.backbone, config.model.drop_path)
