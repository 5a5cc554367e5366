"""`glsd evaluate`: is this backbone good, did it collapse, and what does it match?

What the probes (`ray_jobs.evaluation.probes`) find is `evaluation.json` in the folder of the evaluation, which later
probes of the same model and data add to, and figures.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from glsd.config import LinearConfig
from glsd.data.index import Index
from glsd.data.samples import value_range_note
from glsd.data.scenes import read_scenes
from glsd.data.sources import Sources
from glsd.encoder.encoder import Encoder, model_digest, teacher_encoder
from glsd.runs.checkpoints import load_checkpoint, manifest, newest_checkpoint
from glsd.runs.directory import EVALUATION
from glsd.runs.environment import environment
from glsd.runs.lease import NAME as LEASE
from glsd.runs.lease import TIMES, held_lease
from glsd.runs.log import FIGURES
from glsd.storage.folder import Folder
from glsd.weights.load import load_model
from ray_jobs.cluster.resources import check_ranks, check_resources
from ray_jobs.cluster.start import cluster
from ray_jobs.evaluation.checks import check_map, check_options
from ray_jobs.evaluation.images import probed_images
from ray_jobs.evaluation.linear import LINEAR, check_batch
from ray_jobs.evaluation.probes import NEEDING_LABELS, PROBES, Probe, Probing
from ray_jobs.indexing import indexed
from ray_jobs.progress import ProgressLine
from ray_jobs.settings import JobSettings


def evaluate(
    model: str,
    data: Sources,
    *,
    test: Sources | None = None,
    probes: Sequence[Probe] = ("knn",),
    out: str | None = None,
    ks: Sequence[int] = (10, 20, 100, 200),
    linear: LinearConfig | None = None,
    anchors: Literal["full", "regime"] = "full",
    resize: int | None = None,
    crop: int | None = None,
    pairs: int = 1000,
    scenes: str | None = None,
    beside: Sequence[str] = (),
    figures: bool = True,
    keep: bool = True,
    line: ProgressLine | None = None,
    **job: Any,
) -> dict[str, Any]:
    """Probe a frozen backbone (Sec. 4.3, 4.6, 4.7).

    Args:
        model: a run, a checkpoint, an exported backbone, `timm:NAME` or `timm:NAME=FILE`.
        data: the training images of the probes, labelled for k-NN and linear; without `test`, a share
            `evaluation.holdout` of them is tested instead.
        test: images that are tested.
        probes: what to measure.
        out: folder for `evaluation.json`; an evaluation of the same model and images there is added to.
        ks: numbers of neighbours that vote.
        linear: settings of the linear probe.
        anchors: train and vote with all images (Sec. 4.5.1), or with the regime that the run was trained on.
        resize: in place of the model's `evaluation.resize`.
        crop: in place of the model's `evaluation.crop`.
        pairs: most images whose two views are matched for the correspondence.
        scenes: a CSV file of pairs of photographs and the homography between them, whose correspondence is measured as
            well; `glsd.data.read_scenes` has its columns.
        beside: further models, whose correspondences are drawn beside; for the probe correspondence with `out`.
        figures: draw into `out`.
        keep: leave the model's representations of the images in the cache, for later probes.
        line: shows what goes on; by default a line of the terminal.
        job: fields of `JobSettings`.

    Returns:
        What `evaluation.json` holds; accuracies are shares.

    Raises:
        ValueError: there is no such model, labels are missing, an option does not fit the probes or the images, or
            `out` holds another evaluation, or one that another process is at.
    """
    check_options(probes, ks, pairs, scenes, beside, draws=out is not None and figures)
    photographed = None if scenes is None else (scenes, read_scenes(scenes))
    settings, linear = JobSettings(**job), linear or LinearConfig()
    folder = None if out is None else Folder(out)
    if folder is not None:
        for sources in (data, test or ()):
            folder.check_apart(sources)
        folder.check_own("evaluation", EVALUATION, (LINEAR, LEASE))
    line = line or ProgressLine()
    with line, nullcontext() if folder is None else held_lease(folder, line.phase, TIMES):
        state = _checkpoint_state(model)
        encoder = _resized(load_model(model) if state is None else teacher_encoder(state, model), resize, crop)
        if "collapse" not in probes:
            state = None  # which is several times as large as the encoder
        others = {name: _resized(load_model(name), resize, crop) for name in beside}
        if "correspondence" in probes:
            for name, probed in {**others, model: encoder}.items():
                check_map(probed, name)
        index = indexed(data, encoder.config, line)
        tested = None if test is None else indexed(test, encoder.config, line)
        if note := value_range_note((index, tested), encoder.config.data):
            line.note(note)
        images = probed_images(encoder, index, tested, bool(NEEDING_LABELS & set(probes)), anchors)
        if "linear" in probes:
            check_batch(linear, len(images.trained.image_ids), settings.workers)
        found = _begun(folder, model, encoder, index, tested, anchors)
        with cluster(settings):
            if "linear" in probes:
                check_ranks(settings, check_resources(settings))
            probing = Probing(model, encoder, images, settings, line, found["skipped"])
            measures: dict[Probe, Callable[[], dict[str, Any]]] = {
                "knn": partial(probing.knn, ks),
                "linear": partial(probing.linear, linear, folder),
                "linear_quick": probing.linear_quick,
                "correspondence": partial(probing.correspondence, pairs, photographed),
                "collapse": partial(probing.collapse, state),
            }
            for probe in dict.fromkeys(probes):
                found[probe] = measures[probe]()
                torch.cuda.empty_cache()  # the tasks of the next one may be on the same GPU
                found["skipped"] = probing.skipped()
                if folder is not None:
                    folder.write(EVALUATION, (json.dumps(found, indent=2) + "\n").encode())
        if folder is not None and figures:
            with tempfile.TemporaryDirectory(prefix="glsd-") as drawn:
                probing.picture(probes, others, photographed, Path(drawn))
                for path in sorted(Path(drawn).iterdir()):
                    folder.write(f"{FIGURES}/{path.name}", path.read_bytes())
        if not keep:
            probing.discard()
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


def _resized(encoder: Encoder, resize: int | None, crop: int | None) -> Encoder:
    """The encoder with another preprocessing; a crop alone is resized to in the proportion that the model has."""
    evaluation = encoder.config.evaluation
    if crop is not None and resize is None:
        resize = round(crop * evaluation.resize / evaluation.crop)
    overrides = {"evaluation.resize": resize, "evaluation.crop": crop}
    given = {key: value for key, value in overrides.items() if value is not None}
    config = encoder.config.with_overrides(given)
    encoder.backbone.check_crop_sizes([config.evaluation.crop])
    return Encoder(encoder.backbone, config)


def _begun(
    folder: Folder | None, model: str, encoder: Encoder, index: Index, tested: Index | None, anchors: str
) -> dict[str, Any]:
    """The head of `evaluation.json`, or the evaluation that the folder holds already.

    Raises:
        ValueError: it holds another one.
    """
    identity = {
        "model_digest": model_digest(encoder),
        "data_digest": index.digest,
        "test_digest": None if tested is None else tested.digest,
        "anchors": anchors,
    }
    found = {
        "model": model,
        "backbone": encoder.config.model.backbone,
        "data": index.sources,
        "test": None if tested is None else tested.sources,
        "num_images": len(index) + (len(tested) if tested else 0),
        "classes": index.classes,
        "resize": encoder.config.evaluation.resize,
        "crop": encoder.config.evaluation.crop,
        **identity,
        "skipped": [],
        "environment": environment(),
    }
    content = None if folder is None else folder.read(EVALUATION)
    if content is None:
        return found
    assert folder is not None
    there: dict[str, Any] = json.loads(content)
    for key, images in (("data_digest", index), ("test_digest", tested)):
        if images is not None and images.has_digest(there.get(key)):
            identity[key] = there[key]
    if different := [key for key in identity if there.get(key) != identity[key]]:
        raise ValueError(
            f"{folder.out} holds the evaluation of {there.get('model')} on {there.get('data')}, which differs in "
            f"{', '.join(different)}; choose another --out"
        )
    return there | found | {key: there[key] for key in (*PROBES, "skipped") if key in there}
