"""The probes' work on a part of the images, as Ray tasks."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from glsd.config import DataConfig
from glsd.data.images import UndecodableImage, decode
from glsd.data.index import Index
from glsd.data.samples import decodable
from glsd.data.scenes import Scene
from glsd.encoder.encoder import Encoder
from glsd.evaluation.collapse import collapse_report, encoder_collapse
from glsd.evaluation.correspondence import (
    Correspondence,
    correspondence,
    flip_truth,
    transformed_view,
)
from glsd.evaluation.knn import KnnResult, knn_accuracies
from glsd.storage.files import read
from ray_jobs.cluster.files import Files, place_files
from ray_jobs.cluster.monitor import Handle, Reporter


def voted(
    anchors: np.ndarray,
    anchor_labels: np.ndarray,
    queries: np.ndarray,
    labels: np.ndarray,
    ks: Sequence[int],
    temperature: float,
    num_classes: int,
    torch_threads: int | None,
    monitor: Handle,
) -> list[KnnResult]:
    """The task of k-NN: `knn_accuracies` on its GPU, or by its threads."""
    if torch_threads is not None:
        torch.set_num_threads(torch_threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Ray gives may not be written to, and is not
        tensors = [torch.from_numpy(array) for array in (anchors, anchor_labels, queries, labels)]
    anchor_z_bar, anchor_classes, z_bar, classes = tensors
    reporter = Reporter(monitor, "knn")
    results = knn_accuracies(
        anchor_z_bar,
        anchor_classes,
        moved(z_bar, "cuda" if ray.get_gpu_ids() else "cpu"),
        classes,
        ks,
        temperature,
        num_classes,
        progress=lambda share: reporter.phase("k-NN:", f"{100 * share:.0f} % of the images that vote are compared"),
    )
    reporter.close()
    return results


def moved(z_bar: Tensor, device: str) -> Tensor:
    """On the device, or still in host memory where that has not twice the room for them."""
    if device == "cuda" and 2 * z_bar.nbytes > torch.cuda.mem_get_info()[0]:
        return z_bar
    return z_bar.to(device)


def placed(
    encoder: Encoder, function: Callable[..., Any], index: Index, files: Files, batches: Sequence[np.ndarray]
) -> list[Any]:
    """What a function finds on parts of the images, where the node has the index."""
    place_files(files)
    torch.set_num_threads(1)
    encoder = encoder.to("cuda" if ray.get_gpu_ids() else "cpu")  # a task sees all GPUs of its node, also without any
    return [function(encoder, index, image_ids) for image_ids in batches]


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
    device = next(encoder.parameters()).device
    sides = [torch.from_numpy(np.stack(side)).to(device) for side in zip(*views, strict=True)]
    z_a, z_b = (encoder(encoder.normalize(side))[1] for side in sides)
    found = correspondence(z_a, z_b, flip_truth(encoder.backbone.grid(size), size), size)
    return Correspondence(*(value.cpu() for value in found))


def photographs_part(scene: Scene, limits: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Both images of a scene."""
    images = []
    for uri in (scene.image_a, scene.image_b):
        try:
            content, _ = read(uri)
            images.append(decode(content, limits.max_pixels, limits.value_range))
        except UndecodableImage as error:
            raise ValueError(f"{uri}: {error}") from error
    return images[0], images[1]


def collapse_of_part(
    encoder: Encoder, index: Index, image_ids: np.ndarray, state: "ray.ObjectRef[dict[str, Any]] | None"
) -> Any:
    """The signs of a collapse on some images."""
    limits = encoder.config.data
    crops = {image_id: encoder.preprocess(image) for image_id, image in decodable(index, image_ids, limits)}
    if not crops:
        raise ValueError(f"none of {len(image_ids)} images could be decoded, such as {index.uri(int(image_ids[0]))}")
    # Decoded again: a crop is small, and all of these images at once may not be.
    images = (decode(index.read(image_id), limits.max_pixels, limits.value_range) for image_id in crops)
    device = next(encoder.parameters()).device
    if state is not None:
        return collapse_report(encoder.config, ray.get(state), images, list(crops), str(device))
    with torch.no_grad():
        z_bar = encoder(encoder.normalize(torch.from_numpy(np.stack(list(crops.values()))).to(device)))[0]
    return encoder_collapse(encoder, z_bar, images)
