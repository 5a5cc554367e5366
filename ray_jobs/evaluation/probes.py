"""The probes of one model on one set of images.

Every probe is measured on frozen representations. Those of a data set come from `ray_jobs.evaluation.features`, once.
What needs pairs of views or gradients is computed by tasks on the cluster, some images each, and the vote of k-NN by
one task with what a training worker reserves. What the untrained backbone reaches is kept in the cache: trials that
share a backbone, its seed and the images measure it once.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import ray
import torch
from ray.exceptions import RayTaskError
from torch import Tensor

from glsd.config import LinearConfig
from glsd.data.index import Index
from glsd.data.samples import alike, some_decodable
from glsd.data.scenes import Scene
from glsd.data.splits import LabelledImages, LabelledSplit
from glsd.encoder.encoder import Encoder, model_digest, untrained_encoder
from glsd.evaluation.correspondence import (
    CorrespondenceMeans,
    image_pair_correspondence,
    mean_correspondence,
)
from glsd.evaluation.knn import KnnResult, majority_share
from glsd.evaluation.logistic import logistic_regression
from glsd.reporting.pictures import (
    NUM_PICTURED,
    picture_correspondences,
    picture_features,
    picture_image_pairs,
    picture_method,
    picture_nearest,
)
from glsd.runs.records import (
    CollapseFound,
    CorrespondenceFound,
    KnnFound,
    KnnScore,
    LinearFound,
    QuickLinearFound,
    SceneFound,
    ScenesFound,
    SkippedImage,
)
from glsd.storage.cache import cache_folder, is_kept, kept
from glsd.storage.folder import Folder
from glsd.storage.uris import unquote_key
from ray_jobs.cluster.files import share_files
from ray_jobs.cluster.monitor import start_monitor, watch
from ray_jobs.cluster.resources import check_resources, own_device
from ray_jobs.evaluation.features import Features, Images, Selection, discard, extract, precompute
from ray_jobs.evaluation.images import ProbedImages
from ray_jobs.evaluation.linear import linear_probe
from ray_jobs.evaluation.options import Probe
from ray_jobs.evaluation.tasks import collapse_of_part, matched_part, moved, photographs_part, placed, voted
from ray_jobs.progress import ProgressLine
from ray_jobs.settings import JobSettings, num_cores

PROBES: tuple[Probe, ...] = get_args(Probe)
NEEDING_LABELS = {"knn", "linear", "linear_quick"}

_Side = Literal["anchors", "queries"]
_SIDES: tuple[_Side, _Side] = get_args(_Side)
Photographed = tuple[str, list[Scene]]
"""The file of `--scenes` and what it lists."""
_TASK_IMAGES, _GPU_TASK_BATCHES = 32, 8
_COLLAPSE_IMAGES = 64
_KNN, _CORRESPONDENCE = "k-NN at random initialisation", "correspondence at random initialisation"


class Probing:
    """The probes of one model on one set of images; representations are extracted once."""

    def __init__(
        self,
        model: str,
        encoder: Encoder,
        images: ProbedImages,
        settings: JobSettings,
        line: ProgressLine,
        skipped: Sequence[SkippedImage],
    ):
        self._model, self._encoder, self._images = model, encoder, images
        self._settings, self._line = settings, line
        self._device = own_device(settings)
        self._features: dict[tuple[Encoder, _Side, int], Features] = {}
        self._skipped: dict[tuple[str, int], str] = {(image.uri, image.image_id): image.reason for image in skipped}

    def knn(self, ks: Sequence[int]) -> KnnFound:
        """The vote for every k, of the model and of its random initialisation."""
        temperature = self._encoder.config.evaluation.temperature
        of_untrained = self._facts([ks, temperature, len(self._split.classes)], *self._split[:2])
        self._precompute([self._encoder, *([] if is_kept(_KNN, of_untrained) else [self._untrained])])
        results = self._knn_of(self._encoder, ks)
        untrained = kept(_KNN, of_untrained, lambda: [*map(_knn_entry, self._knn_of(self._untrained, ks))])
        voting, tested = (torch.from_numpy(self._labelled(self._encoder, side)[0].labels) for side in _SIDES)
        return KnnFound(
            temperature=temperature,
            num_anchors=results[0].num_anchors,
            num_queries=results[0].num_queries,
            majority=majority_share(voting, tested),
            results=[KnnScore(**_knn_entry(result)) for result in results],
            untrained=[KnnScore(**score) for score in untrained],
        )

    def discard(self) -> None:
        """Delete the model's representations from the cache; those of the random initialisation serve other models."""
        self._features.clear()
        for index in {id(side.index): side.index for side in self._split[:2]}.values():
            discard(self._encoder, index)

    def linear(self, config: LinearConfig, folder: Folder | None) -> LinearFound:
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

    def linear_quick(self) -> QuickLinearFound:
        """Logistic regression on the representations that k-NN compares."""
        self._precompute([self._encoder])
        (images, z_bar), (tested, test_z_bar) = (self._labelled(self._encoder, side) for side in _SIDES)
        labels, test_labels = (torch.from_numpy(side.labels) for side in (images, tested))
        found = logistic_regression(
            moved(z_bar, self._device),
            labels,
            test_z_bar,
            test_labels,
            len(self._split.classes),
            progress=lambda share: self._line.phase("fitting", f"linear layers: {100 * share:.0f} % done"),
        )
        return QuickLinearFound(**found._asdict())

    def correspondence(self, pairs: int, scenes: Photographed | None) -> CorrespondenceFound:
        """The mean over some of the tested images, each against its mirrored and recoloured view; and each scene's.

        Both beside those of the random initialisation.
        """
        images = self._images.tested
        chosen = np.sort(np.random.default_rng([0, len(images.image_ids)]).permutation(images.image_ids)[:pairs])
        chosen_images = Selection(images.index, chosen)
        found = self._correspondence_of(self._encoder, chosen_images)
        untrained = kept(
            _CORRESPONDENCE,
            self._facts([], chosen_images),
            lambda: self._correspondence_of(self._untrained, chosen_images)._asdict(),
        )
        beside = {"size": self._encoder.config.evaluation.crop, "untrained": untrained}
        photographed = {"scenes": self._scenes(*scenes)} if scenes else {}
        return CorrespondenceFound.model_validate(found._asdict() | beside | photographed)

    def collapse(self, state: Mapping[str, Any] | None) -> CollapseFound:
        """The verdict on the model, on some of the training images; with a checkpoint's state also on its heads.

        JSON has no infinities: a measure that is not finite stands in the reasons alone.
        """
        images = self._images.trained
        ids = np.random.default_rng([1, len(images.image_ids)]).permutation(images.image_ids)[:_COLLAPSE_IMAGES]
        probe = partial(collapse_of_part, state=None if state is None else ray.put(state))
        ((metrics, verdict),) = self._on_cluster(probe, self._encoder, images.index, [ids], "probing")
        return CollapseFound(
            verdict=verdict.label,
            reasons=list(verdict.reasons),
            metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        )

    def picture(
        self, probes: Sequence[Probe], others: Mapping[str, Encoder], scenes: Photographed | None, folder: Path
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
                pictured = [(*photographs_part(scene, limits), scene.homography) for scene in scenes[1][:NUM_PICTURED]]
                picture_image_pairs(models, pictured, folder / "scenes")
        if NEEDING_LABELS & set(probes):
            shown, z_bar = self._labelled(self._encoder, "queries")
            picture_features(z_bar.numpy(), shown.labels, self._split.classes, folder)
        if {"knn", "linear_quick"} & set(probes):  # the linear layer needs no representations of all training images
            anchors, queries = (self._labelled(self._encoder, side) for side in _SIDES)
            picture_nearest(encoder, anchors, queries, self._split.classes, folder, num_cores())

    def skipped(self) -> list[SkippedImage]:
        """Images that could not be decoded."""
        return [
            SkippedImage(image_id=image_id, uri=uri, reason=reason)
            for (uri, image_id), reason in sorted(self._skipped.items())
        ]

    def _scenes(self, file: str, scenes: Sequence[Scene]) -> ScenesFound:
        entries = []
        for number, scene in enumerate(scenes):
            self._line.phase("matching", f"{number:,} of {len(scenes):,} scenes")
            photographs = photographs_part(scene, self._encoder.config.data)
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
            entries.append(SceneFound.model_validate(named | trained | {"untrained": untrained}))
        return ScenesFound(file=file, pairs=entries)

    @property
    def _split(self) -> LabelledSplit:
        assert self._images.split is not None
        return self._images.split

    @cached_property
    def _untrained(self) -> Encoder:
        return untrained_encoder(self._encoder.config)

    def _facts(self, settings: list[Any], *images: Images) -> list[Any]:
        """What a result of the random initialisation follows from."""
        limits = self._encoder.config.data
        facts = [*settings, model_digest(self._untrained), limits.max_pixels, limits.value_range]
        for side in images:
            labels = side.labels.tobytes() if isinstance(side, LabelledImages) else b""
            facts += [side.index.key, hashlib.sha256(side.image_ids.tobytes() + labels).hexdigest()]
        return facts

    def _knn_of(self, encoder: Encoder, ks: Sequence[int]) -> list[KnnResult]:
        """The vote by an encoder, of a task with what a training worker reserves."""
        (anchors, anchor_z_bar), (queries, z_bar) = (self._labelled(encoder, side) for side in _SIDES)
        resources, monitor = check_resources(self._settings), start_monitor()
        self._line.phase("k-NN, waiting for room")
        task = ray.remote(
            num_cpus=resources.per_worker["CPU"],
            num_gpus=resources.per_worker.get("GPU", 0),
            scheduling_strategy="DEFAULT",  # a Tune trial's tasks would have to fit into what the trial reserves
        )(voted)
        asked = task.remote(
            ray.put(anchor_z_bar.numpy()),
            anchors.labels,
            ray.put(z_bar.numpy()),
            queries.labels,
            list(dict.fromkeys(min(k, len(anchors.labels)) for k in ks)),
            encoder.config.evaluation.temperature,
            len(self._split.classes),
            resources.torch_threads,
            monitor,
        )
        with watch(monitor, self._line):
            results: list[KnnResult] = _result(asked)
        return results

    def _correspondence_of(self, encoder: Encoder, images: Images) -> CorrespondenceMeans:
        """The mean over images, each against its mirrored and recoloured view."""
        ids = images.image_ids
        batches = [ids[start : start + _TASK_IMAGES] for start in range(0, len(ids), _TASK_IMAGES)]
        found = self._on_cluster(matched_part, encoder, images.index, batches, "matching")
        matched = [pairs for pairs in found if pairs is not None]
        if not matched:
            raise ValueError(f"none of {len(ids)} images could be decoded, such as {images.index.uri(int(ids[0]))}")
        return mean_correspondence(matched)

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
        self, function: Callable[..., Any], encoder: Encoder, index: Index, batches: Sequence[np.ndarray], name: str
    ) -> list[Any]:
        """`function(encoder, index, image_ids)` for each batch of images, as tasks wherever there is room."""
        resources = check_resources(self._settings, index.packed)
        # By default a task of a Tune trial would have to fit into what the trial reserves.
        gpus = resources.per_worker.get("GPU", 0)
        task = ray.remote(num_cpus=1, num_gpus=gpus, scheduling_strategy="SPREAD")(placed)
        shared, files = ray.put(encoder.cpu()), share_files([index])
        # A task with a GPU has a process of its own, which imports torch and starts CUDA.
        size = _GPU_TASK_BATCHES if gpus else 1
        groups = [batches[start : start + size] for start in range(0, len(batches), size)]
        pending = [task.remote(shared, function, index, files, group) for group in groups]
        order = {reference: position for position, reference in enumerate(pending)}
        results: list[list[Any]] = [[]] * len(groups)
        num_done = 0
        while pending:
            self._line.phase(name, f"{num_done:,} of {sum(map(len, batches)):,} images")
            (done, *_), pending = ray.wait(pending)
            results[order[done]] = _result(done)
            num_done += sum(map(len, groups[order[done]]))
        return [result for group in results for result in group]


def _result(asked: Any) -> Any:
    """What a task returns.

    Raises:
        BaseException: what it raised, without Ray's wrapping.
    """
    try:
        return ray.get(asked)
    except RayTaskError as error:
        raise error.cause from None


def _knn_entry(result: KnnResult) -> dict[str, int | float]:
    return {name: getattr(result, name) for name in ("k", "top1", "top5", "num_top")}
