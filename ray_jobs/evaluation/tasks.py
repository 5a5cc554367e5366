"""The probes' work on a part of the images, as Ray tasks."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayTaskError

from glsd.data.images import decode
from glsd.data.index import Index
from glsd.data.samples import decodable
from glsd.encoder.encoder import Encoder, embed
from glsd.evaluation.collapse import collapse_report, encoder_collapse
from glsd.evaluation.correspondence import Correspondence, correspondence, flip_truth, transformed_view
from glsd.evaluation.knn import Labelled, knn_accuracies
from glsd.runs.records import KnnScore
from ray_jobs.cluster.files import SharedFiles, place_files, share_files
from ray_jobs.cluster.monitor import Handle, Reporter
from ray_jobs.cluster.resources import check_resources
from ray_jobs.evaluation.features import Images
from ray_jobs.progress import ProgressLine
from ray_jobs.settings import JobSettings

_GPU_TASK_BATCHES = 8


def voted(
    anchors: tuple[np.ndarray, np.ndarray],
    queries: tuple[np.ndarray, np.ndarray],
    ks: Sequence[int],
    temperature: float,
    num_classes: int,
    torch_threads: int | None,
    monitor: Handle,
) -> list[KnnScore]:
    """The task of k-NN: `knn_accuracies` on its GPU, or by its threads; both sides are representations and labels."""
    if torch_threads is not None:
        torch.set_num_threads(torch_threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Ray gives may not be written to, and is not
        voting, asking = (Labelled(*map(torch.from_numpy, side)) for side in (anchors, queries))
    # Representations without twice the room for them on the GPU stay in host memory.
    if ray.get_gpu_ids() and 2 * asking.features.nbytes <= torch.cuda.mem_get_info()[0]:
        asking = asking._replace(features=asking.features.cuda())
    reporter = Reporter(monitor, "knn")

    def progress(share: float) -> None:
        reporter.phase("k-NN:", f"{100 * share:.0f} % of the images that vote are compared")

    results = knn_accuracies(voting, asking, ks, temperature, num_classes, progress=progress)
    reporter.close()
    return results


def map_images(
    function: Callable[..., Any],
    encoder: Encoder,
    images: Images,
    at_once: int,
    settings: JobSettings,
    line: ProgressLine,
    name: str,
) -> list[Any]:
    """`function(encoder, index, image_ids)` of `at_once` images each, in order, as tasks wherever there is room."""
    index, ids = images.index, images.image_ids
    resources = check_resources(settings)
    gpus = resources.per_worker.get("GPU", 0)
    # By default a task of a Tune trial would have to fit into what the trial reserves.
    task = ray.remote(num_cpus=1, num_gpus=gpus, scheduling_strategy="SPREAD")(_placed)
    shared, files = ray.put(encoder.cpu()), share_files([index])
    batches = [ids[start : start + at_once] for start in range(0, len(ids), at_once)]
    # A task with a GPU has a process of its own, which imports torch and starts CUDA.
    size = _GPU_TASK_BATCHES if gpus else 1
    groups = [batches[start : start + size] for start in range(0, len(batches), size)]
    asked = [task.remote(shared, function, index, files, group) for group in groups]
    num_images = {one: sum(map(len, group)) for one, group in zip(asked, groups, strict=True)}
    pending, num_done = asked, 0
    while pending:
        line.phase(name, f"{num_done:,} of {len(ids):,} images")
        (done, *_), pending = ray.wait(pending)
        result_of(done)  # a failure ends the rest
        num_done += num_images[done]
    return [result for group in asked for result in result_of(group)]


def _placed(
    encoder: Encoder, function: Callable[..., Any], index: Index, files: SharedFiles, batches: Sequence[np.ndarray]
) -> list[Any]:
    """What a function finds on parts of the images, where the node has the index."""
    place_files(files)
    torch.set_num_threads(1)
    encoder = encoder.to("cuda" if ray.get_gpu_ids() else "cpu")  # a task sees all GPUs of its node, also without any
    return [function(encoder, index, image_ids) for image_ids in batches]


def result_of(asked: Any) -> Any:
    """What a task returns, or raises: its own exception without Ray's wrapping."""
    try:
        return ray.get(asked)
    except RayTaskError as error:
        raise error.cause from None


@torch.no_grad()
def matched_part(encoder: Encoder, index: Index, image_ids: np.ndarray) -> Correspondence | None:
    """Each decodable image's central crop against its mirrored and recoloured view (Sec. 4.7)."""
    size = encoder.config.evaluation.crop
    views = []
    for image_id, image in decodable(index, image_ids, encoder.config.data):
        crop = encoder.preprocess(image)
        views.append((crop, transformed_view(crop, 0, image_id)))
    if not views:
        return None
    z_a, z_b = (encoder.represent(torch.from_numpy(np.stack(side)))[1] for side in zip(*views, strict=True))
    found = correspondence(z_a, z_b, flip_truth(encoder.backbone.grid(size), size), size)
    return Correspondence(*(value.cpu() for value in found))


def collapse_of_part(
    encoder: Encoder, index: Index, image_ids: np.ndarray, state: "ray.ObjectRef[Mapping[str, Any]] | None"
) -> Any:
    """The signs of a collapse on some images."""
    limits = encoder.config.data
    crops = {image_id: encoder.preprocess(image) for image_id, image in decodable(index, image_ids, limits)}
    if not crops:
        raise ValueError(f"none of {len(image_ids)} images could be decoded, such as {index.uri(int(image_ids[0]))}")
    # Decoded again: a crop is small, and all of these images at once may not be.
    images = (decode(index.read(image_id), limits.max_pixels, limits.value_range) for image_id in crops)
    if state is not None:
        device = next(encoder.parameters()).device
        return collapse_report(encoder.config, ray.get(state), images, list(crops), str(device))
    z_bar = embed(encoder, [torch.from_numpy(np.stack(list(crops.values())))])
    return encoder_collapse(encoder, z_bar, images)
