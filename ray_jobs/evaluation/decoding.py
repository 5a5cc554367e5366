"""The task that reads images for an encoder; without torch, whose import takes longer than most chunks."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from glsd.config import Config
from glsd.data.images import UndecodableImage, decode
from glsd.data.index import Index
from glsd.encoder.preprocessing import evaluation_crop
from ray_jobs.cluster.files import SharedFiles, place_files
from ray_jobs.workers.stream import use_one_core


def read_chunk(
    row: Mapping[str, NDArray[Any]],
    config: Config,
    index: Index,
    files: SharedFiles,
    image_ids: "ray.ObjectRef[NDArray[np.int64]]",
    size: int,
) -> dict[str, NDArray[Any]]:
    """A chunk of images as the encoder of `config` takes them, those that cannot be decoded black and with the reason.

    Ray Data reports an exception's traceback without its message, so what a user can repair travels as a row.
    """
    use_one_core()
    first = int(row["id"][0]) * size
    ids: NDArray[np.int64] = ray.get(image_ids)[first : first + size]
    limits, side = config.data, config.evaluation.crop
    crops, reasons, failure = np.zeros((len(ids), side, side, 3), np.uint8), [""] * len(ids), ""
    try:
        place_files(files)
        with ThreadPoolExecutor(8) as readers:
            for place, data in enumerate(readers.map(index.read, ids.tolist())):
                try:
                    crops[place] = evaluation_crop(
                        decode(data, limits.max_pixels, limits.value_range), config.evaluation
                    )
                except UndecodableImage as error:
                    reasons[place] = str(error)
    except (ValueError, OSError) as error:
        failure = str(error)
    return {"image_id": ids, "crops": crops, "reason": np.array(reasons), "failure": np.full(len(ids), failure)}
