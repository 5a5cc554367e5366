"""Linear evaluation (Sec. 4.3) on Ray Train: a layer is trained on the frozen representations of random crops.

The crops of a step are a function of the step, made by CPU workers as in training, so a probe that was killed resumes
from the checkpoint of its last whole epoch and gives the same result.
"""

import copy
import hashlib
import itertools
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from glsd.config import LinearConfig
from glsd.data.splits import LabelledImages, LabelledSplit
from glsd.data.units import MAX_UNIT_BYTES
from glsd.encoder.blocks import block_representations
from glsd.encoder.encoder import Encoder, model_digest
from glsd.evaluation.knn import Labelled
from glsd.evaluation.linear import initial_probe, linear_accuracy, linear_step
from glsd.evaluation.linear_units import LinearSource
from glsd.runs.checkpoints import checkpoints, load_checkpoint, prune_checkpoints, save_checkpoint
from glsd.runs.directory import RunDirectory
from glsd.runs.records import LinearFound
from glsd.storage.folder import Folder
from glsd.storage.uris import joined
from ray_jobs.cluster.files import share_files
from ray_jobs.cluster.growing import Widths
from ray_jobs.cluster.monitor import Handle, Reporter, start_monitor
from ray_jobs.cluster.resources import check_ranks, check_resources
from ray_jobs.progress import ProgressLine, progress_text
from ray_jobs.settings import JobSettings
from ray_jobs.workers.fit import fit
from ray_jobs.workers.stream import Unit, share

LINEAR = "linear"
"""Folder of the checkpoints, in that of the evaluation."""
MAX_UNIT_SIZE = 32
"""Most images that go through the encoder at once."""
LOG_EVERY_STEPS = 10


@dataclass(frozen=True)
class LinearPlan:
    """What a worker of a probe needs."""

    encoder: "ray.ObjectRef[Encoder]"
    dim: int
    num_classes: int
    source: LinearSource
    run: RunDirectory
    """Where the checkpoints are."""
    token: str
    """Of the lease that the driver holds there."""
    monitor: Handle
    torch_threads: int | None


def linear_probe(
    encoder: Encoder,
    split: LabelledSplit,
    config: LinearConfig,
    test: Labelled,
    settings: JobSettings,
    folder: Folder,
    line: ProgressLine,
) -> LinearFound:
    """Train a linear layer on the anchors of the split and test it after the last epoch, which need not be the best.

    It belongs within `with cluster(settings)`. What it learns is kept in a folder below `LINEAR` in `folder` that
    is named after model, images and settings: the same call resumes, and one that is finished only tests.

    Args:
        encoder: frozen.
        split: its anchors train the layer.
        config: the protocol.
        test: representations of centre crops, of `config.num_blocks` blocks, in float32, and their classes.
        settings: workers and devices.
        folder: the evaluation's; on several nodes all of them reach it.
        line: of the progress.

    Raises:
        ValueError: a setting does not fit the images or the workers, no images can be read, the loss is not finite, a
            worker does not reach `folder`, or another call trains the same layer there.
    """
    anchors, num_classes = split.anchors, len(split.classes)
    check_batch(config, len(anchors.image_ids), settings.num_workers)
    run = RunDirectory(joined(folder.location, f"{LINEAR}/{_digest(encoder, anchors, num_classes, config)}"))
    num_steps = config.epochs * (len(anchors.image_ids) // config.batch_size)
    if num_steps not in checkpoints(run.location):
        resources = check_resources(settings)
        check_ranks(settings, resources)
        side = encoder.config.evaluation.crop
        source = LinearSource(
            config,
            encoder.config.data,
            side,
            unit_size(config.batch_size // settings.num_workers, side),
            anchors.index,
            anchors.image_ids,
            anchors.labels,
            settings.cache_bytes,
        )
        monitor, frozen, dim = start_monitor(), ray.put(copy.deepcopy(encoder).cpu()), test.features.shape[1]
        stream = share(source, share_files([anchors.index]), settings.data_on)
        with run.lease(on_wait=line.phase) as token:
            plan = LinearPlan(frozen, dim, num_classes, source, run, token, monitor, resources.torch_threads)
            widths = Widths(settings, [settings.num_workers], resources)
            fit(linear_worker, plan, stream, run, widths, monitor, line)
    layer = load_checkpoint(checkpoints(run.location)[num_steps])["layer"]
    logits = functional.linear(test.features, layer["weight"], layer["bias"])
    accuracy = linear_accuracy(logits, test.labels, num_classes)
    return LinearFound(**accuracy.model_dump(), epochs=config.epochs, settings=config.model_dump(mode="json"))


def linear_worker(plan: LinearPlan, units: Iterator[Unit]) -> None:
    """One worker of a probe, from the newest checkpoint to the end."""
    plan.run.check_reached(plan.token)
    config, order, num_steps = plan.source.config, plan.source.order, plan.source.num_steps
    if plan.torch_threads is not None:
        torch.set_num_threads(plan.torch_threads)
    device = ray.train.torch.get_device()
    context = ray.train.get_context()
    first = next(units, None)
    if first is None:
        return  # the last checkpoint is that of the last step
    units = itertools.chain([first], units)
    num_units = order.units_per_step // context.get_world_size()
    encoder = ray.get(plan.encoder).to(device)
    probe = initial_probe(plan.dim, plan.num_classes, config, device)
    # The stream decides where this start continues, so data and weights are of one checkpoint.
    if step := int(first["unit"][0]) // order.units_per_step:
        probe.load_state_dict(load_checkpoint(checkpoints(plan.run.location)[step]))
    layer: nn.Module = probe.layer
    if context.get_world_size() > 1:
        layer = DistributedDataParallel(layer, device_ids=[device] if device.type == "cuda" else None)
    report = _Report(plan, probe.step)

    while probe.step < num_steps:
        z_bar, labels = _representations(encoder, itertools.islice(units, num_units), config.num_blocks, device)
        loss = linear_step(probe, layer, z_bar, labels, config.batch_size, num_steps, config)
        epoch_ends = probe.step % order.steps_per_epoch == 0
        if epoch_ends or probe.step % LOG_EVERY_STEPS == 0:
            report(probe.step, loss)
        if epoch_ends and context.get_world_rank() == 0:
            facts, may_publish = {"settings": config.model_dump(mode="json")}, partial(plan.run.holds_lease, plan.token)
            save_checkpoint(plan.run.location, probe.step, probe.state_dict(), facts, may_publish)
            prune_checkpoints(plan.run.location, {probe.step})
    report.close()


def unit_size(num_images: int, crop: int) -> int:
    """Images of a unit, of which a worker has a whole number for its `num_images` of a step: as many as memory takes.

    >>> unit_size(256, 224), unit_size(100, 224), unit_size(8, 224), unit_size(64, 1500)
    (32, 25, 8, 8)
    """
    most = min(num_images, MAX_UNIT_SIZE, max(1, MAX_UNIT_BYTES // (3 * crop * crop)))
    return max(size for size in range(1, most + 1) if num_images % size == 0)


class _Report:
    """Shows the loss to the driver, and stops all workers alike where it is not finite."""

    def __init__(self, plan: LinearPlan, first_step: int) -> None:
        self._plan, self._first_step, self._start = plan, first_step, time.perf_counter()
        self._reporter = Reporter(plan.monitor, "linear") if ray.train.get_context().get_world_rank() == 0 else None

    def __call__(self, step: int, loss: Tensor) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(loss)
        mean = loss.item()
        if not math.isfinite(mean):
            raise ValueError(f"the loss of the linear probe is {mean} at step {step}; use a lower linear.base_lr")
        if self._reporter is not None:
            source = self._plan.source
            seconds_per_step = (time.perf_counter() - self._start) / (step - self._first_step)
            metrics = {
                "epoch": step / source.order.steps_per_epoch,
                "epochs": source.config.epochs,
                "loss": mean,
                "seconds_left": (source.num_steps - step) * seconds_per_step,
            }
            self._reporter.phase("linear", progress_text(metrics))

    def close(self) -> None:
        """Have the driver know the last loss."""
        if self._reporter is not None:
            self._reporter.close()


@torch.no_grad()
def _representations(
    encoder: Encoder, units: Iterable[Mapping[str, np.ndarray]], num_blocks: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """z̄ or several blocks' representations (images, D) of a worker's units of a step, and their labels (images,)."""
    features, labels = [], []
    for unit in units:
        images = encoder.normalize(torch.tensor(unit["crops"], device=device))
        features.append(block_representations(encoder, images, num_blocks).float())
        labels.append(torch.tensor(unit["label"], device=device))
    return torch.cat(features), torch.cat(labels)


def check_batch(config: LinearConfig, num_images: int, workers: int) -> None:
    """Refuse a batch that the images do not fill or the workers cannot share evenly; one that fits is named."""
    if config.batch_size % workers:
        raise ValueError(
            f"{workers} workers cannot share a batch of {config.batch_size} images; use linear.batch_size "
            f"{math.ceil(config.batch_size / workers) * workers}"
        )
    if num_images < config.batch_size:
        fitting = num_images - num_images % workers
        advice = f"use linear.batch_size {fitting}" if fitting else "use more images or fewer --workers"
        raise ValueError(f"{num_images} training images do not fill a batch of {config.batch_size}; {advice}")


def _digest(encoder: Encoder, anchors: LabelledImages, num_classes: int, config: LinearConfig) -> str:
    """Twenty hexadecimal digits for all that the trained layer depends on."""
    facts = [
        model_digest(encoder),
        encoder.config.data.value_range,
        anchors.index.digest,
        hashlib.sha256(anchors.image_ids.tobytes() + anchors.labels.tobytes()).hexdigest(),
        num_classes,
        config.model_dump(mode="json"),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]
