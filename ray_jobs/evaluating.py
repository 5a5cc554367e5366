"""`glsd evaluate`: is this backbone good, did it collapse, and what does it match?

Every probe is measured on frozen representations. Those of a data set come from `ray_jobs.features`; what needs pairs
of views or gradients is computed by tasks on the cluster, some images each. What is found is `evaluation.json` in the
folder of the evaluation, which later probes of the same model and data add to, and figures.
"""

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import ray
import torch
from ray.exceptions import RayTaskError
from torch import Tensor

from glsd.config import DataConfig, LinearConfig
from glsd.data import Index, Scene, UndecodableImage, cache_folder, decode, read_scenes, subset
from glsd.data.filesystems import read, unquote_key
from glsd.evaluation import (
    COLLAPSE_MEASURES,
    Correspondence,
    Encoder,
    KnnResult,
    collapse_report,
    correspondence,
    encoder_collapse,
    flip_truth,
    image_pair_correspondence,
    knn_accuracies,
    load_model,
    logistic_regression,
    majority_share,
    mean_correspondence,
    model_digest,
    standard_error,
    teacher_encoder,
    transformed_view,
    untrained_encoder,
)
from glsd.training import load_checkpoint, manifest, newest_checkpoint
from ray_jobs.cluster import check_ranks, check_resources, cluster
from ray_jobs.features import Features, Images, Selection, extract, precompute
from ray_jobs.folder import Folder
from ray_jobs.labelled import LabelledImages, LabelledSplit, Sources, indexed, labelled_split
from ray_jobs.lease import NAME as LEASE
from ray_jobs.lease import TIMES, held_lease
from ray_jobs.monitor import ProgressLine
from ray_jobs.picturing import (
    NUM_PICTURED,
    alike,
    decodable,
    picture_correspondences,
    picture_features,
    picture_image_pairs,
    picture_method,
    picture_nearest,
    some_decodable,
)
from ray_jobs.probing import LINEAR, check_batch, linear_probe
from ray_jobs.run_directory import EVALUATION, FIGURES, environment
from ray_jobs.settings import JobSettings
from ray_jobs.stream import Files, place_files, share_files

Probe = Literal["knn", "linear", "linear_quick", "correspondence", "collapse"]
PROBES: tuple[Probe, ...] = get_args(Probe)
NEEDING_LABELS = {"knn", "linear", "linear_quick"}

_Side = Literal["anchors", "queries"]
_SIDES: tuple[_Side, _Side] = get_args(_Side)
_Photographed = tuple[str, list[Scene]]
"""The file of `--scenes` and what it lists."""
_TASK_IMAGES, _GPU_TASK_BATCHES = 32, 8
_COLLAPSE_IMAGES = 64


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
        line: shows what goes on; by default a line of the terminal.
        job: fields of `JobSettings`.

    Returns:
        What `evaluation.json` holds; accuracies are shares.

    Raises:
        ValueError: there is no such model, labels are missing, an option does not fit the probes or the images, or
            `out` holds another evaluation, or one that another process is at.
    """
    _check_options(probes, ks, pairs, scenes, beside, draws=out is not None and figures)
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
        encoder = _resized(load_model(model) if state is None else teacher_encoder(state), resize, crop)
        if "collapse" not in probes:
            state = None  # which is several times as large as the encoder
        others = {name: _resized(load_model(name), resize, crop) for name in beside}
        if "correspondence" in probes:
            for name, probed in {**others, model: encoder}.items():
                check_map(probed, name)
        index = indexed(data, encoder.config, line)
        tested = None if test is None else indexed(test, encoder.config, line)
        images = _probed_images(encoder, index, tested, bool(NEEDING_LABELS & set(probes)), anchors)
        if "linear" in probes:
            check_batch(linear, len(images.trained.image_ids), settings.workers)
        found = _begun(folder, model, encoder, index, tested, anchors)
        with cluster(settings):
            if "linear" in probes:
                check_ranks(settings, check_resources(settings))
            probing = _Probing(model, encoder, images, settings, line, found["skipped"])
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
    return found


def score_table(found: Mapping[str, Any]) -> str:
    """An evaluation for people.

    The random initialisation is the honest zero of an encoder: convolutions alone tell many images apart.
    """
    lines = [f"{found['model']} ({found['backbone']}, {found['resize']} px resized, {found['crop']} px cropped)"]
    if "knn" in found:
        knn = found["knn"]
        lines += ["", f"k-NN accuracy: {knn['num_anchors']:,} images vote on {knn['num_queries']:,}"]
        beside = {result["k"]: result for result in knn["untrained"]}
        for result in knn["results"]:
            error = 100 * standard_error(result["top1"], knn["num_queries"])
            lines.append(
                f"  k = {result['k']:<4} {100 * result['top1']:5.1f} % +- {error:.1f}   "
                f"top {result['num_top']}: {100 * result['top5']:5.1f} %   "
                f"untrained {100 * beside[result['k']]['top1']:5.1f} %"
            )
        lines.append(f"  always the most frequent class  {100 * knn['majority']:5.1f} %")
    for probe, name in (("linear", "linear, SGD"), ("linear_quick", "linear, L-BFGS")):
        if probe in found:
            result = found[probe]
            top5 = f"top {result['num_top']}: {100 * result['top5']:.1f} %"
            lines += ["", f"{name}: {100 * result['top1']:.1f} %   {top5}"]
    if "correspondence" in found:
        result = found["correspondence"]
        lines += [
            "",
            f"correspondence of {result['num_images']:,} images and their mirrored, recoloured views of "
            f"{result['size']} px",
            *_correspondence_lines("all locations", result),
        ]
        for scene in result.get("scenes", {}).get("pairs", []):
            lines += [
                f"correspondence of {Path(scene['image_a']).name} and {Path(scene['image_b']).name}",
                *_correspondence_lines(f"{scene['num_locations']} locations", scene),
            ]
    if "collapse" in found:
        result = found["collapse"]
        lines += ["", f"collapse: {result['verdict']}", *(f"  {reason}" for reason in result["reasons"])]
        for name, value in result["metrics"].items():
            title, meaning = COLLAPSE_MEASURES[name]
            lines.append(f"  {title:<31} {value:9.3g}   {meaning}")
    if skipped := found["skipped"]:
        lines += ["", f"could not be decoded: {len(skipped):,}, such as {skipped[0]['uri']}: {skipped[0]['reason']}"]
    return "\n".join(lines)


def _correspondence_lines(locations: str, result: Mapping[str, Any]) -> list[str]:
    """The table of a correspondence: of all locations, and of the most similar ones."""
    rows = ((locations, "accuracy", "error_px"), (f"most similar {result['num_top']}", "accuracy_top", "error_top_px"))
    lines = []
    for name, accuracy, error_px in rows:
        sides = (
            f"{100 * side[accuracy]:5.1f} % right, {side[error_px]:6.1f} px off"
            for side in (result, result["untrained"])
        )
        lines.append(f"  {name:<15} " + "   untrained ".join(sides))
    return lines


@dataclass(frozen=True)
class _Probed:
    """The images of an evaluation: a split of labelled ones, or others, for probes that need no labels."""

    split: LabelledSplit | None
    tested: Images
    """Images whose views are matched."""
    trained: Images


def _probed_images(
    encoder: Encoder, index: Index, tested: Index | None, labelled: bool, anchors: Literal["full", "regime"]
) -> _Probed:
    evaluation = encoder.config.evaluation
    everything = evaluation.model_copy(update={"max_images": len(index) + (len(tested) if tested else 0)})
    trained = np.arange(len(index))
    if anchors == "regime":
        if index.labels is None:
            raise ValueError("--anchors regime needs labelled --data")
        regime = encoder.config.data
        if regime.images_per_class is None and regime.fraction is None:
            raise ValueError("--anchors regime: the model was trained on all its images; there is no smaller regime")
        trained = subset(index.labels, regime, index.classes)
    if not labelled and (tested is not None or index.labels is None):
        return _Probed(None, Selection.all(tested or index), Selection(index, trained))
    split = labelled_split(index, tested, everything)
    split = split._replace(anchors=split.anchors.rows(np.isin(split.anchors.image_ids, trained)))
    return _Probed(split, split.queries, split.anchors)


class _Probing:
    """The probes of one model on one set of images; representations are extracted once."""

    def __init__(
        self,
        model: str,
        encoder: Encoder,
        images: _Probed,
        settings: JobSettings,
        line: ProgressLine,
        skipped: Sequence[Mapping[str, Any]],
    ):
        self._model, self._encoder, self._images = model, encoder, images
        self._settings, self._line = settings, line
        self._device = settings.device
        self._features: dict[tuple[Encoder, _Side, int], Features] = {}
        self._skipped: dict[tuple[str, int], str] = {
            (entry["uri"], entry["image_id"]): entry["reason"] for entry in skipped
        }

    def knn(self, ks: Sequence[int]) -> dict[str, Any]:
        """The vote for every k, of the model and of its random initialisation."""
        encoders = (self._encoder, self._untrained)
        self._precompute(encoders)
        results = [self._knn_of(encoder, ks) for encoder in encoders]
        voting, tested = (torch.from_numpy(self._labelled(self._encoder, side)[0].labels) for side in _SIDES)
        trained, untrained = ([_knn_entry(result) for result in side] for side in results)
        return {
            "temperature": self._encoder.config.evaluation.temperature,
            "num_anchors": results[0][0].num_anchors,
            "num_queries": results[0][0].num_queries,
            "majority": majority_share(voting, tested),
            "results": trained,
            "untrained": untrained,
        }

    def linear(self, config: LinearConfig, folder: Folder | None) -> dict[str, Any]:
        """SGD on crops, the last epoch's accuracy."""
        split = self._split
        tested = self._extracted(self._encoder, "queries", config.num_blocks)
        return linear_probe(
            self._encoder,
            split,
            config,
            torch.from_numpy(tested.values),
            torch.from_numpy(split.queries.labels[tested.positions]),
            self._settings,
            folder or Folder(cache_folder()),
            self._line,
        )

    def linear_quick(self) -> dict[str, Any]:
        """Logistic regression on the representations that k-NN compares."""
        self._precompute([self._encoder])
        (images, z_bar), (tested, test_z_bar) = (self._labelled(self._encoder, side) for side in _SIDES)
        labels, test_labels = (torch.from_numpy(side.labels) for side in (images, tested))
        found = logistic_regression(
            self._moved(z_bar),
            labels,
            test_z_bar,
            test_labels,
            len(self._split.classes),
            progress=lambda share: self._line.phase(f"fitting linear layers: {100 * share:.0f} % done"),
        )
        return found._asdict() | {"validation": [list(entry) for entry in found.validation]}

    def correspondence(self, pairs: int, scenes: _Photographed | None) -> dict[str, Any]:
        """The mean over some of the tested images, each against its mirrored and recoloured view; and each scene's.

        Both beside those of the random initialisation.
        """
        images = self._images.tested
        chosen = np.sort(np.random.default_rng([0, len(images.image_ids)]).permutation(images.image_ids)[:pairs])
        batches = [chosen[start : start + _TASK_IMAGES] for start in range(0, len(chosen), _TASK_IMAGES)]
        match = partial(_matched, untrained=ray.put(self._untrained.cpu()))
        matched = [result for result in self._on_cluster(match, images.index, batches, "matching") if result]
        if not matched:
            raise ValueError(
                f"none of {len(chosen)} images could be decoded, such as {images.index.uri(int(chosen[0]))}"
            )
        trained, untrained = (mean_correspondence(side)._asdict() for side in zip(*matched, strict=True))
        found = trained | {"size": self._encoder.config.evaluation.crop, "untrained": untrained}
        return found | ({"scenes": self._scenes(*scenes)} if scenes else {})

    def collapse(self, state: dict[str, Any] | None) -> dict[str, Any]:
        """The verdict on the model, on some of the training images; with a checkpoint's state also on its heads.

        JSON has no infinities: a measure that is not finite stands in the reasons alone.
        """
        images = self._images.trained
        ids = np.random.default_rng([1, len(images.image_ids)]).permutation(images.image_ids)[:_COLLAPSE_IMAGES]
        probe = partial(_collapse, state=None if state is None else ray.put(state))
        ((metrics, verdict),) = self._on_cluster(probe, images.index, [ids], "probing")
        return {
            "verdict": verdict.label,
            "reasons": list(verdict.reasons),
            "metrics": {name: value for name, value in metrics.items() if math.isfinite(value)},
        }

    def picture(
        self, probes: Sequence[Probe], others: Mapping[str, Encoder], scenes: _Photographed | None, folder: Path
    ) -> None:
        """The figures that belong to the probes."""
        self._line.phase("drawing the figures")
        encoder = self._encoder.to(self._device)
        tested, limits = self._images.tested, encoder.config.data
        models = {Path(unquote_key(self._model)).name: encoder, **others, "untrained": self._untrained}
        models = {name: model.to(self._device) for name, model in models.items()}
        images = some_decodable(tested.index, tested.image_ids, limits, 0, NUM_PICTURED)
        if "collapse" in probes:
            picture_method(encoder, images, folder)
        if "correspondence" in probes:
            picture_correspondences(models, images, folder)
            if pairs := alike(tested.index, tested.image_ids, limits, NUM_PICTURED):
                picture_image_pairs(models, [(*pair, None) for pair in pairs], folder / "different_images")
            if scenes:
                pictured = [(*_photographs(scene, limits), scene.homography) for scene in scenes[1][:NUM_PICTURED]]
                picture_image_pairs(models, pictured, folder / "scenes")
        if NEEDING_LABELS & set(probes):
            shown, z_bar = self._labelled(self._encoder, "queries")
            picture_features(z_bar.numpy(), shown.labels, self._split.classes, folder)
        if {"knn", "linear_quick"} & set(probes):  # the linear layer needs no representations of all training images
            anchors, queries = (self._labelled(self._encoder, side) for side in _SIDES)
            picture_nearest(encoder, anchors, queries, self._split.classes, folder)

    def skipped(self) -> list[dict[str, Any]]:
        """Images that could not be decoded."""
        return [
            {"image_id": image_id, "uri": uri, "reason": reason}
            for (uri, image_id), reason in sorted(self._skipped.items())
        ]

    def _scenes(self, file: str, scenes: Sequence[Scene]) -> dict[str, Any]:
        entries = []
        for number, scene in enumerate(scenes):
            self._line.phase(f"matching {number:,} of {len(scenes):,} scenes")
            photographs = _photographs(scene, self._encoder.config.data)
            pairs = [
                image_pair_correspondence(encoder.to(self._device), *photographs, scene.homography).correspondence
                for encoder in (self._encoder, self._untrained)
            ]
            try:
                trained, untrained = (mean_correspondence([pair])._asdict() for pair in pairs)
            except ValueError:
                raise ValueError(
                    f"by its homography no location of {scene.image_a} lies within {scene.image_b}"
                ) from None
            named = {"image_a": scene.image_a, "image_b": scene.image_b, "num_locations": int(pairs[0].num_pairs)}
            entries.append(named | trained | {"untrained": untrained})
        return {"file": file, "pairs": entries}

    @property
    def _split(self) -> LabelledSplit:
        assert self._images.split is not None
        return self._images.split

    @cached_property
    def _untrained(self) -> Encoder:
        return untrained_encoder(self._encoder.config)

    def _knn_of(self, encoder: Encoder, ks: Sequence[int]) -> list[KnnResult]:
        (anchors, anchor_z_bar), (queries, z_bar) = (self._labelled(encoder, side) for side in _SIDES)
        anchor_labels, labels = (torch.from_numpy(images.labels) for images in (anchors, queries))
        different = list(dict.fromkeys(min(k, len(anchor_labels)) for k in ks))
        temperature, num_classes = encoder.config.evaluation.temperature, len(self._split.classes)
        return knn_accuracies(
            anchor_z_bar,
            anchor_labels,
            self._moved(z_bar),
            labels,
            different,
            temperature,
            num_classes,
            progress=lambda share: self._line.phase(f"k-NN: {100 * share:.0f} % of the images that vote are compared"),
        )

    def _moved(self, z_bar: Tensor) -> Tensor:
        """On this process's device, or still in host memory where that has not twice the room for them."""
        if self._device == "cuda" and 2 * z_bar.nbytes > torch.cuda.mem_get_info()[0]:
            return z_bar
        return z_bar.to(self._device)

    def _precompute(self, encoders: Sequence[Encoder]) -> None:
        """Have the z̄ of both sides at hand, those of one index in one pass."""
        anchors, queries, _ = self._split
        sides = [[anchors, queries]] if anchors.index is queries.index else [[anchors], [queries]]
        for images in sides:
            precompute(encoders, Selection.union(*images), settings=self._settings, line=self._line, name="embedding")

    def _labelled(self, encoder: Encoder, side: _Side) -> tuple[LabelledImages, Tensor]:
        """The decodable images that train or are tested, and their z̄."""
        found = self._extracted(encoder, side)
        images: LabelledImages = getattr(self._split, side)
        return images.rows(found.positions), torch.from_numpy(found.values)

    def _extracted(self, encoder: Encoder, side: _Side, num_blocks: int = 1) -> Features:
        key = (encoder, side, num_blocks)
        if key not in self._features:
            images: LabelledImages = getattr(self._split, side)
            found = extract(
                encoder, images, settings=self._settings, line=self._line, name="embedding", num_blocks=num_blocks
            )
            self._skipped |= {(images.index.uri(image_id), image_id): why for image_id, why in found.skipped}
            self._features[key] = found
        return self._features[key]

    def _on_cluster(
        self, function: Callable[..., Any], index: Index, batches: Sequence[np.ndarray], name: str
    ) -> list[Any]:
        """`function(encoder, index, image_ids)` for each batch of images, as tasks wherever there is room."""
        resources = check_resources(self._settings, index.packed)
        # By default a task of a Tune trial would have to fit into what the trial reserves.
        gpus = resources.per_worker.get("GPU", 0)
        task = ray.remote(num_cpus=1, num_gpus=gpus, scheduling_strategy="SPREAD")(_placed)
        shared, files = ray.put(self._encoder.cpu()), share_files([index])
        # A task with a GPU has a process of its own, which imports torch and starts CUDA.
        size = _GPU_TASK_BATCHES if gpus else 1
        groups = [batches[start : start + size] for start in range(0, len(batches), size)]
        pending = [task.remote(shared, function, index, files, group) for group in groups]
        order = {reference: position for position, reference in enumerate(pending)}
        results: list[list[Any]] = [[]] * len(groups)
        num_done = 0
        while pending:
            self._line.phase(f"{name} {num_done:,} of {sum(map(len, batches)):,} images")
            (done, *_), pending = ray.wait(pending)
            try:
                results[order[done]] = ray.get(done)
            except RayTaskError as error:
                raise error.cause from None
            num_done += sum(map(len, groups[order[done]]))
        return [result for group in results for result in group]


def _placed(
    encoder: Encoder, function: Callable[..., Any], index: Index, files: Files, batches: Sequence[np.ndarray]
) -> list[Any]:
    place_files(files)
    torch.set_num_threads(1)
    encoder = encoder.to("cuda" if ray.get_gpu_ids() else "cpu")  # a task sees all GPUs of its node, also without any
    return [function(encoder, index, image_ids) for image_ids in batches]


@torch.no_grad()
def _matched(
    encoder: Encoder, index: Index, image_ids: np.ndarray, untrained: "ray.ObjectRef[Encoder]"
) -> list[Correspondence] | None:
    """Each decodable image's central crop against its mirrored and recoloured view (Sec. 4.7), by both encoders."""
    size = encoder.config.evaluation.crop
    views = []
    for image_id, image in decodable(index, image_ids, encoder.config.data):
        crop = encoder.preprocess(image)
        views.append((crop, transformed_view(crop, 0, image_id)))
    if not views:
        return None
    device = next(encoder.parameters()).device
    sides = [torch.from_numpy(np.stack(side)).to(device) for side in zip(*views, strict=True)]
    truth, results = flip_truth(encoder.backbone.grid(size), size), []
    for model in (encoder, ray.get(untrained).to(device)):
        z_a, z_b = (model(model.normalize(side))[1] for side in sides)
        results.append(Correspondence(*(value.cpu() for value in correspondence(z_a, z_b, truth, size))))
    return results


def _photographs(scene: Scene, limits: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Both images of a scene."""
    images = []
    for uri in (scene.image_a, scene.image_b):
        try:
            content, _ = read(uri)
            images.append(decode(content, limits.max_pixels, limits.value_range))
        except UndecodableImage as error:
            raise ValueError(f"{uri}: {error}") from error
    return images[0], images[1]


def _collapse(
    encoder: Encoder, index: Index, image_ids: np.ndarray, state: "ray.ObjectRef[dict[str, Any]] | None"
) -> Any:
    decoded = list(decodable(index, image_ids, encoder.config.data))
    if not decoded:
        raise ValueError(f"none of {len(image_ids)} images could be decoded, such as {index.uri(int(image_ids[0]))}")
    ids, images = [image_id for image_id, _ in decoded], [image for _, image in decoded]
    device = next(encoder.parameters()).device
    if state is not None:
        return collapse_report(encoder.config, ray.get(state), images, ids, str(device))
    crops = torch.from_numpy(np.stack([encoder.preprocess(image) for image in images]))
    with torch.no_grad():
        z_bar = encoder(encoder.normalize(crops.to(device)))[0]
    return encoder_collapse(encoder, z_bar, images)


def _knn_entry(result: KnnResult) -> dict[str, Any]:
    return {name: getattr(result, name) for name in ("k", "top1", "top5", "num_top")}


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


def _check_options(
    probes: Sequence[str],
    ks: Sequence[int],
    pairs: int,
    scenes: str | None,
    beside: Sequence[str],
    draws: bool,
) -> None:
    """What can be told without model and images.

    Raises:
        ValueError: an option is out of range, or would have no effect.
    """
    if unknown := [probe for probe in probes if probe not in PROBES]:
        raise ValueError(f"there is no probe {unknown[0]!r}; choose from {', '.join(PROBES)}")
    if min(ks, default=0) < 1:
        raise ValueError(f"--ks must be numbers of neighbours, 1 or more each, not {' '.join(map(str, ks)) or 'none'}")
    if pairs < 1:
        raise ValueError(f"--pairs must be 1 or more, not {pairs}; without correspondence in --probes none is matched")
    if scenes is not None and "correspondence" not in probes:
        raise ValueError("--scenes is for the probe correspondence; add it to --probes")
    if beside and not ("correspondence" in probes and draws):
        raise ValueError("--beside draws correspondences; it needs correspondence in --probes and a folder --out")


def check_map(encoder: Encoder, name: str) -> None:
    """Whether there is a location to mistake another for.

    Raises:
        ValueError: the dense representation of `name` has a single one, so that every correspondence is right.
    """
    crop = encoder.config.evaluation.crop
    if math.prod(encoder.backbone.grid(crop)) == 1:
        raise ValueError(
            f"{name} has a single location in a crop of {crop} px, which can only match itself; for correspondence use "
            "a larger --crop or a backbone of a smaller stride"
        )


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
    if different := [key for key in identity if there.get(key) != identity[key]]:
        raise ValueError(
            f"{folder.out} holds the evaluation of {there.get('model')} on {there.get('data')}, which differs in "
            f"{', '.join(different)}; choose another --out"
        )
    return there | found | {key: there[key] for key in (*PROBES, "skipped") if key in there}
