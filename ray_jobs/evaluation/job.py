"""`glsd evaluate`: is this backbone good, did it collapse, and what does it match?

What the probes (`ray_jobs.evaluation.probes`) find is `evaluation.json` in the folder of the evaluation, which later
probes of the same model and data add to, and figures.
"""

import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from glsd.data.index import Index
from glsd.data.samples import value_range_note
from glsd.data.scenes import read_scenes
from glsd.data.sources import Sources
from glsd.encoder.encoder import Encoder, model_digest, teacher_encoder
from glsd.runs.checkpoints import load_checkpoint, manifest, newest_checkpoint
from glsd.runs.environment import environment
from glsd.runs.lease import TIMES, held_lease
from glsd.runs.log import FIGURES
from glsd.runs.records import EVALUATION, LEASE, Evaluation, FileRecord, read_record, write_record
from glsd.storage.folder import Folder
from glsd.weights.load import load_model
from ray_jobs.cluster.resources import check_ranks, check_resources
from ray_jobs.cluster.start import cluster
from ray_jobs.evaluation import probes
from ray_jobs.evaluation.images import check_map, probed_images
from ray_jobs.evaluation.linear import LINEAR, check_batch
from ray_jobs.evaluation.options import PROBES, EvaluateOptions, Probe
from ray_jobs.indexing import indexed
from ray_jobs.progress import ProgressLine
from ray_jobs.settings import JobSettings


def evaluate(
    model: str,
    data: Sources,
    options: EvaluateOptions = EvaluateOptions(),
    job: JobSettings = JobSettings(),
    line: ProgressLine | None = None,
) -> Evaluation:
    """Probe a frozen backbone (Sec. 4.3, 4.6, 4.7).

    Args:
        model: a run, a checkpoint, an exported backbone, `timm:NAME` or `timm:NAME=FILE`.
        data: the training images of the probes, labelled for k-NN and linear.
        options: what is measured.
        job: workers and devices.
        line: shows the progress; by default a line of the terminal.

    Returns:
        What `evaluation.json` holds; accuracies are shares.

    Raises:
        ValueError: there is no such model, labels are missing, an option does not fit the probes or the images, or
            `options.out` holds another evaluation, or one that another process is at.
    """
    options.check()
    photographed = None if options.scenes is None else (options.scenes, read_scenes(options.scenes))
    folder = None if options.out is None else Folder(options.out)
    if folder is not None:
        for sources in (data, options.test):
            folder.check_apart(sources)
        folder.check_own("evaluation", EVALUATION, (LINEAR, LEASE))
    with line or ProgressLine() as line, nullcontext() if folder is None else held_lease(folder, line.phase, TIMES):
        state = _checkpoint_state(model)
        encoder = _resized(load_model(model) if state is None else teacher_encoder(state, model), options)
        if "collapse" not in options.probes:
            state = None  # which is several times as large as the encoder
        others = {name: _resized(load_model(name), options) for name in options.beside}
        if "correspondence" in options.probes:
            for name, other in {**others, model: encoder}.items():
                check_map(other, name)
        index = indexed(data, encoder.config, line, job, options.out)
        tested = indexed(options.test, encoder.config, line, job, options.out, "--test") if options.test else None
        if note := value_range_note((index, tested), encoder.config.data):
            line.note(note)
        images = probed_images(encoder, index, tested, options)
        if "linear" in options.probes:
            check_batch(options.linear, len(images.trained.image_ids), job.num_workers)
        found = _begun(folder, model, encoder, index, tested, options.anchors)
        with cluster(job):
            probed = probes.Probed(encoder, images, job, line, found.skipped)
            found = _measured(probed, options, folder, photographed, state, found)
        if folder is not None and options.figures:
            with tempfile.TemporaryDirectory(prefix="glsd-") as drawn:
                probes.picture(probed, model, options.probes, others, photographed, Path(drawn))
                for path in sorted(Path(drawn).iterdir()):
                    folder.write(f"{FIGURES}/{path.name}", path.read_bytes())
        if not options.keep:
            probed.discard()
    return found


def _measured(
    probed: probes.Probed,
    options: EvaluateOptions,
    folder: Folder | None,
    photographed: probes.Photographed | None,
    state: Mapping[str, Any] | None,
    found: Evaluation,
) -> Evaluation:
    """The evaluation with what each probe measures, written as soon as it is known."""
    measures: dict[Probe, Callable[[probes.Probed], FileRecord]] = {
        "knn": partial(probes.knn, ks=options.ks),
        "linear": partial(probes.linear, config=options.linear, folder=folder),
        "linear_quick": probes.linear_quick,
        "correspondence": partial(probes.correspondence, pairs=options.pairs, scenes=photographed),
        "collapse": partial(probes.collapse, state=state),
    }
    if "linear" in options.probes:
        check_ranks(probed.job, check_resources(probed.job))
    for probe in dict.fromkeys(options.probes):
        measured = measures[probe](probed)
        torch.cuda.empty_cache()  # the tasks of the next one may be on the same GPU
        found = found.model_copy(update={probe: measured, "skipped": probed.skipped()})
        if folder is not None:
            write_record(folder, found)
    return found


def _checkpoint_state(model: str) -> dict[str, Any] | None:
    """What the checkpoint of a run or a checkpoint's name holds: only there are heads and centres."""
    if model.startswith("timm:"):
        return None
    checkpoint = newest_checkpoint(model) or model
    try:
        manifest(checkpoint)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return load_checkpoint(checkpoint)


def _resized(encoder: Encoder, options: EvaluateOptions) -> Encoder:
    """The encoder with another preprocessing; a crop without a resize keeps the model's proportion of both."""
    evaluation, resize, crop = encoder.config.evaluation, options.resize, options.crop
    if crop is not None and resize is None:
        resize = round(crop * evaluation.resize / evaluation.crop)
    overrides = {"evaluation.resize": resize, "evaluation.crop": crop}
    given = {key: value for key, value in overrides.items() if value is not None}
    config = encoder.config.with_overrides(given)
    encoder.backbone.check_crop_sizes([config.evaluation.crop])
    return Encoder(encoder.backbone, config)


def _begun(
    folder: Folder | None, model: str, encoder: Encoder, index: Index, tested: Index | None, anchors: str
) -> Evaluation:
    """The head of `evaluation.json`, or the evaluation that the folder holds already; another one is refused."""
    found = Evaluation(
        model=model,
        backbone=encoder.config.model.backbone,
        data=index.sources,
        test=None if tested is None else tested.sources,
        num_images=len(index) + (len(tested) if tested else 0),
        classes=index.classes,
        resize=encoder.config.evaluation.resize,
        crop=encoder.config.evaluation.crop,
        model_digest=model_digest(encoder),
        data_digest=index.digest,
        test_digest=None if tested is None else tested.digest,
        anchors=anchors,
        skipped=[],
        environment=environment(),
    )
    there = None if folder is None else read_record(folder, Evaluation)
    if folder is None or there is None:
        return found
    are_same = {
        "model_digest": there.model_digest == found.model_digest,
        "data_digest": index.has_digest(there.data_digest),
        "test_digest": there.test_digest is None if tested is None else tested.has_digest(there.test_digest),
        "anchors": there.anchors == anchors,
    }
    if different := [key for key, is_same in are_same.items() if not is_same]:
        raise ValueError(
            f"{folder.out} holds the evaluation of {there.model} on {there.data}, which differs in "
            f"{', '.join(different)}; choose another --out"
        )
    measured = {key: getattr(there, key) for key in (*PROBES, "skipped") if key in there.model_fields_set}
    measured |= there.model_extra or {}
    return found.model_copy(update=measured)
