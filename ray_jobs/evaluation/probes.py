"""The probes of one model on one set of images, one function each.

Every probe is measured on frozen representations, which `Probed` extracts once. What needs pairs of views or gradients
is computed by tasks on the cluster, some images each, and the vote of k-NN by one task with what a training worker
reserves. What the untrained backbone reaches is kept in the cache: trials that share a backbone, its seed and the
images measure it once.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import ray
import torch

from glsd.config import LinearConfig
from glsd.data.scenes import Scene, photographs
from glsd.data.splits import LabelledImages, LabelledSplit
from glsd.encoder.encoder import Encoder, model_digest, untrained_encoder
from glsd.evaluation.correspondence import image_pair_correspondence, mean_correspondence
from glsd.evaluation.knn import Labelled, majority_share
from glsd.evaluation.logistic import logistic_regression
from glsd.reporting.pictures import picture_features, picture_nearest, picture_probes
from glsd.runs import records
from glsd.storage.cache import cache_folder, is_kept, kept
from glsd.storage.folder import Folder
from glsd.storage.uris import unquote_key
from ray_jobs.cluster.monitor import start_monitor, watch
from ray_jobs.cluster.resources import check_resources, own_device
from ray_jobs.evaluation.features import Features, Images, Selection, discard, extract, precompute
from ray_jobs.evaluation.images import ProbedImages
from ray_jobs.evaluation.linear import linear_probe
from ray_jobs.evaluation.options import NEEDING_LABELS, Probe
from ray_jobs.evaluation.tasks import collapse_of_part, map_images, matched_part, result_of, voted
from ray_jobs.progress import ProgressLine
from ray_jobs.settings import JobSettings, num_cores

Photographed = tuple[str, list[Scene]]
"""The file of `--scenes` and what it lists."""
_Side = Literal["anchors", "queries"]
_TASK_IMAGES, _COLLAPSE_IMAGES = 32, 64
_KNN, _CORRESPONDENCE = "k-NN at random initialisation", "correspondence at random initialisation"


class Probed:
    """A model, its random initialisation, the images of an evaluation, and their representations, extracted once."""

    def __init__(
        self,
        encoder: Encoder,
        images: ProbedImages,
        job: JobSettings,
        line: ProgressLine,
        skipped: Sequence[records.SkippedImage],
    ):
        self.encoder, self.images, self.job, self.line = encoder, images, job, line
        self.device = own_device(job)
        self._features: dict[tuple[Encoder, _Side, int], Features] = {}
        self._skipped: dict[tuple[str, int], str] = {(image.uri, image.image_id): image.reason for image in skipped}

    @property
    def split(self) -> LabelledSplit:
        """The labelled images."""
        assert self.images.split is not None
        return self.images.split

    @cached_property
    def untrained(self) -> Encoder:
        """The model's random initialisation."""
        return untrained_encoder(self.encoder.config)

    def precompute(self, *encoders: Encoder) -> None:
        """Have the z̄ of both sides at hand, those of one index in one pass."""
        anchors, queries, _ = self.split
        for images in [[anchors, queries]] if anchors.index is queries.index else [[anchors], [queries]]:
            precompute(encoders, Selection.union(*images), settings=self.job, line=self.line)

    def labelled(self, encoder: Encoder, side: _Side, num_blocks: int = 1) -> tuple[LabelledImages, Labelled]:
        """The decodable images of one side, and their representations."""
        images: LabelledImages = getattr(self.split, side)
        key = (encoder, side, num_blocks)
        if key not in self._features:
            found = extract(encoder, images, settings=self.job, line=self.line, num_blocks=num_blocks)
            self._features[key] = found
            self._skipped |= {(images.index.uri(image_id), image_id): why for image_id, why in found.skipped}
        found = self._features[key]
        decoded = images.rows(found.positions)
        return decoded, Labelled(torch.from_numpy(found.values), torch.from_numpy(decoded.labels))

    def both(self, encoder: Encoder) -> tuple[Labelled, Labelled]:
        """z̄ of the decodable images that vote, and of those that are tested."""
        return self.labelled(encoder, "anchors")[1], self.labelled(encoder, "queries")[1]

    def facts(self, settings: Sequence[object], *images: Images) -> list[object]:
        """What a result of the random initialisation follows from."""
        limits = self.encoder.config.data
        facts = [*settings, model_digest(self.untrained), limits.max_pixels, limits.value_range]
        for side in images:
            labels = side.labels.tobytes() if isinstance(side, LabelledImages) else b""
            facts += [side.index.key, hashlib.sha256(side.image_ids.tobytes() + labels).hexdigest()]
        return facts

    def skipped(self) -> list[records.SkippedImage]:
        """Images that could not be decoded."""
        return [
            records.SkippedImage(image_id=image_id, uri=uri, reason=reason)
            for (uri, image_id), reason in sorted(self._skipped.items())
        ]

    def discard(self) -> None:
        """Delete the model's representations from the cache; those of the random initialisation serve other models."""
        self._features.clear()
        sides = () if self.images.split is None else self.images.split[:2]
        for index in {id(side.index): side.index for side in sides}.values():
            discard(self.encoder, index)


def knn(probed: Probed, ks: Sequence[int]) -> records.KnnFound:
    """The vote for every k, of the model and of its random initialisation."""
    temperature = probed.encoder.config.evaluation.temperature
    of_untrained = probed.facts([ks, temperature, len(probed.split.classes)], *probed.split[:2])
    probed.precompute(probed.encoder, *([] if is_kept(_KNN, of_untrained) else [probed.untrained]))
    results = _vote(probed, probed.encoder, ks)
    num_voting = len(probed.both(probed.encoder)[0].labels)
    if too_many := [str(k) for k in dict.fromkeys(ks) if k > num_voting]:
        probed.line.note(f"--ks {' '.join(too_many)}: only {num_voting:,} images vote, so k = {num_voting} is measured")
    untrained = kept(_KNN, of_untrained, lambda: [score.model_dump() for score in _vote(probed, probed.untrained, ks)])
    voting, tested = (side.labels for side in probed.both(probed.encoder))
    return records.KnnFound(
        temperature=temperature,
        num_anchors=len(voting),
        num_queries=len(tested),
        majority=majority_share(voting, tested),
        results=results,
        untrained=[records.KnnScore(**score) for score in untrained],
    )


def linear(probed: Probed, config: LinearConfig, folder: Folder | None) -> records.LinearFound:
    """SGD on crops, the last epoch's accuracy."""
    _, tested = probed.labelled(probed.encoder, "queries", config.num_blocks)
    where = folder or Folder(cache_folder())
    return linear_probe(probed.encoder, probed.split, config, tested, probed.job, where, probed.line)


def linear_quick(probed: Probed) -> records.QuickLinearFound:
    """Logistic regression on the representations that k-NN compares."""
    probed.precompute(probed.encoder)
    return logistic_regression(
        *probed.both(probed.encoder),
        len(probed.split.classes),
        progress=lambda share: probed.line.phase("fitting", f"linear layers: {100 * share:.0f} % done"),
    )


def correspondence(probed: Probed, pairs: int, scenes: Photographed | None) -> records.CorrespondenceFound:
    """The mean over some of the tested images, each against its mirrored and recoloured view; and each scene's.

    Both are beside those of the random initialisation.
    """
    images = probed.images.tested
    chosen = np.sort(np.random.default_rng([0, len(images.image_ids)]).permutation(images.image_ids)[:pairs])
    selection = Selection(images.index, chosen)
    found = _matched(probed, probed.encoder, selection)
    of_untrained = probed.facts([], selection)
    untrained = kept(_CORRESPONDENCE, of_untrained, lambda: _matched(probed, probed.untrained, selection).model_dump())
    beside = {"size": probed.encoder.config.evaluation.crop, "untrained": untrained}
    photographed = {"scenes": _scenes(probed, *scenes)} if scenes else {}
    return records.CorrespondenceFound.model_validate(found.model_dump() | beside | photographed)


def collapse(probed: Probed, state: Mapping[str, Any] | None) -> records.CollapseFound:
    """The verdict on the model, on some of the training images; with a checkpoint's state also on its heads.

    JSON has no infinities: a measure that is not finite stands in the reasons only.
    """
    images = probed.images.trained
    ids = np.random.default_rng([1, len(images.image_ids)]).permutation(images.image_ids)[:_COLLAPSE_IMAGES]
    probe = partial(collapse_of_part, state=None if state is None else ray.put(state))
    chosen = Selection(images.index, ids)
    ((metrics, verdict),) = map_images(
        probe, probed.encoder, chosen, _COLLAPSE_IMAGES, probed.job, probed.line, "probing"
    )
    return records.CollapseFound(
        verdict=verdict.label,
        reasons=list(verdict.reasons),
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
    )


def picture(
    probed: Probed,
    model: str,
    probes: Sequence[Probe],
    others: Mapping[str, Encoder],
    scenes: Photographed | None,
    folder: Path,
) -> None:
    """The figures that belong to the probes; `model` is its name, `others` are models beside."""
    probed.line.phase("drawing the figures")
    encoder, tested = probed.encoder, probed.images.tested
    models = {Path(unquote_key(model)).name: encoder, **others, "untrained": probed.untrained}
    models = {name: shown.to(probed.device) for name, shown in models.items()}
    picture_probes(probes, encoder, models, (tested.index, tested.image_ids), scenes[1] if scenes else (), folder)
    if NEEDING_LABELS & set(probes):
        images, queries = probed.labelled(encoder, "queries")
        picture_features(queries.features.numpy(), images.labels, probed.split.classes, folder)
    if {"knn", "linear_quick"} & set(probes):  # the linear layer needs no representations of all training images
        (voting, anchors), (asking, queries) = (probed.labelled(encoder, side) for side in get_args(_Side))
        sides = (voting, anchors.features), (asking, queries.features)
        picture_nearest(encoder, *sides, probed.split.classes, folder, num_cores())


def _vote(probed: Probed, encoder: Encoder, ks: Sequence[int]) -> list[records.KnnScore]:
    """The vote by an encoder, of a task with what a training worker reserves."""
    anchors, queries = probed.both(encoder)
    resources, monitor = check_resources(probed.job), start_monitor()
    probed.line.phase("k-NN, waiting for room")
    task = ray.remote(
        num_cpus=resources.per_worker["CPU"],
        num_gpus=resources.per_worker.get("GPU", 0),
        scheduling_strategy="DEFAULT",  # a Tune trial's tasks would have to fit into what the trial reserves
    )(voted)
    asked = task.remote(
        # Ray's shared memory takes arrays of numpy without a copy.
        *(ray.put((side.features.numpy(), side.labels.numpy())) for side in (anchors, queries)),
        list(dict.fromkeys(min(k, len(anchors.labels)) for k in ks)),
        encoder.config.evaluation.temperature,
        len(probed.split.classes),
        resources.torch_threads,
        monitor,
    )
    with watch(monitor, probed.line):
        scores: list[records.KnnScore] = result_of(asked)
    return scores


def _matched(probed: Probed, encoder: Encoder, images: Selection) -> records.Matched:
    """The mean over images, each against its mirrored and recoloured view."""
    found = map_images(matched_part, encoder, images, _TASK_IMAGES, probed.job, probed.line, "matching")
    matched = [pairs for pairs in found if pairs is not None]
    if not matched:
        uri = images.index.uri(int(images.image_ids[0]))
        raise ValueError(f"none of {len(images.image_ids)} images could be decoded, such as {uri}")
    return mean_correspondence(matched)


def _scenes(probed: Probed, file: str, scenes: Sequence[Scene]) -> records.ScenesFound:
    entries = []
    for number, scene in enumerate(scenes):
        probed.line.phase("matching", f"{number:,} of {len(scenes):,} scenes")
        both = photographs(scene, probed.encoder.config.data)
        pairs = [
            image_pair_correspondence(encoder.to(probed.device), *both, scene.homography).correspondence
            for encoder in (probed.encoder, probed.untrained)
        ]
        try:
            trained, untrained = (mean_correspondence([pair]).model_dump() for pair in pairs)
        except ValueError:
            raise ValueError(f"by its homography no location of {scene.image_a} lies within {scene.image_b}") from None
        named = {"image_a": scene.image_a, "image_b": scene.image_b, "num_locations": int(pairs[0].num_pairs)}
        entries.append(records.SceneFound.model_validate(named | trained | {"untrained": untrained}))
    return records.ScenesFound(file=file, pairs=entries)
