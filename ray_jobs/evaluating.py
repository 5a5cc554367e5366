"""`glsd evaluate`: k-NN of a model on its own."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from glsd.evaluation import Encoder, KnnResult, load_encoder, untrained_encoder
from ray_jobs.labelled import LabelledImages, Sources, indexed, labelled_split
from ray_jobs.monitor import ProgressLine
from ray_jobs.online_knn import Labelled, embedded, preprocessed, score, standard_error


@dataclass(frozen=True)
class Scores:
    """What `glsd evaluate` found, and what it stands beside."""

    model: str
    knn: KnnResult
    untrained: KnnResult
    """The same backbone at its random initialisation."""
    majority: float
    """Share of the tested images in the most frequent class of those that vote."""


def evaluate(model: str, data: Sources, *, test: Sources | None = None) -> Scores:
    """k-NN of a run, a checkpoint or an exported backbone on labelled images, beside its random initialisation.

    Args:
        model: what `glsd.load_encoder` takes.
        data: labelled images that vote; without `test`, a share `evaluation.holdout` of them is tested instead.
        test: labelled images that are tested.

    Raises:
        ValueError: there is no model, or the images have no labels.
    """
    encoder = load_encoder(model)
    config = encoder.config
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with ProgressLine() as line:
        voting = indexed(data, config, line)
        tested = None if test is None else indexed(test, config, line)
        everything = config.evaluation.model_copy(update={"max_images": len(voting) + (len(tested) if tested else 0)})
        split = labelled_split(voting, tested, everything)
        results = []
        for network, name in ((encoder, "embedding"), (untrained_encoder(config), "embedding, untrained,")):
            sides = [
                _streamed(network.to(device), images, partial(_announce, line, name))
                for images in (split.anchors, split.queries)
            ]
            results.append(score(sides[0], sides[1], split, config.evaluation))
    return Scores(model, results[0], results[1], split.majority)


def score_table(scores: Scores) -> str:
    """The scores for people.

    The random initialisation is the honest zero of an encoder: convolutions alone tell many images apart.
    """
    knn = scores.knn
    rows = [
        (scores.model, knn.top1),
        ("the same backbone, untrained", scores.untrained.top1),
        ("always the most frequent class", scores.majority),
    ]
    width = max(len(name) for name, _ in rows)
    error = 100 * standard_error(knn.top1, knn.num_queries)
    lines = [f"k-NN accuracy (+- {error:.1f}), k = {knn.k}: {knn.num_anchors:,} images vote on {knn.num_queries:,}"]
    return "\n".join([*lines, *(f"  {name:<{width}}  {100 * value:5.1f} %" for name, value in rows)])


def _announce(line: ProgressLine, name: str, done: int) -> None:
    line.phase(f"{name} {done:,} images")


def _streamed(encoder: Encoder, images: LabelledImages, progress: Callable[[int], None]) -> Labelled:
    """Representations of any number of images, never more than a few batches of pixels in memory."""
    features, labels = [], []
    for start in range(0, len(images.image_ids), _CHUNK):
        part = embedded(encoder, preprocessed(encoder, images, slice(start, start + _CHUNK)))
        features.append(part.features)
        labels.append(part.labels)
        progress(min(start + _CHUNK, len(images.image_ids)))
    return Labelled(torch.cat(features), torch.cat(labels))


_CHUNK = 512
