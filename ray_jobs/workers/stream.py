"""The stream: units of a training or of a probe, made by Ray Data's CPU tasks, as one execution over all epochs.

A row of `range` is a unit, so the stream is a pure function of the step: a resume starts `range` later, and any number
of workers receives the same units. Blocks of equal size and `preserve_order` are what makes rank r of W get the units
i * W + r, see `stream_options`.

Ray Train's controller and Ray Data's coordinators import this module, one after the other, before the first unit comes.
So torch, which only the tasks need, is imported by the tasks.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
import ray
import ray.data
from PIL import AvifImagePlugin
from ray.data import Dataset, ExecutionOptions

from glsd.data.units import UnitMaker
from glsd.runs.checkpoints import checkpoints
from ray_jobs.cluster.files import SharedFiles, place_files


class Shared(NamedTuple):
    """What makes units, in the object store: tasks map its arrays and copy none."""

    maker: "ray.ObjectRef[UnitMaker]"
    num_units: int
    units_per_step: int
    files: SharedFiles
    """The indexes' files, for nodes that lack them."""


def share(maker: UnitMaker, files: SharedFiles) -> Shared:
    """Put what makes units into the object store."""
    return Shared(ray.put(maker), maker.num_units, maker.order.units_per_step, files)


def stream(shared: Shared, start_unit: int) -> Dataset:
    """All units from `start_unit` to the end of the last epoch, one block each, in order."""
    num_units = shared.num_units - start_unit
    # About a thousand units per read task: many more tasks delay the first batch of a long run by most of a minute.
    units = ray.data.range(num_units, override_num_blocks=max(1, num_units // 1000))
    units.context.execution_no_progress_timeout_s = -1  # k-NN or an upload may hold the training up for long
    return units.repartition(target_num_rows_per_block=1).map_batches(
        partial(_make_unit, maker=shared.maker, files=shared.files, first=start_unit),
        batch_size=None,
        batch_format="numpy",
        num_cpus=1,
    )


def remaining(shared: Shared, run: str) -> Dataset:
    """The units after the newest checkpoint of a run; Ray Train asks again whenever it starts the workers."""
    return stream(shared, max(checkpoints(run), default=0) * shared.units_per_step)


def stream_options() -> ExecutionOptions:
    """The options under which `streaming_split` deals the units out in order; Ray Train passes them on."""
    return ExecutionOptions(preserve_order=True)


def received(units: Iterable[Mapping[str, np.ndarray]]) -> Iterator[Mapping[str, np.ndarray]]:
    """The units as they arrive at a training worker.

    Raises:
        ValueError: a unit could not be made; the message is the user's.
    """
    for unit in units:
        if failure := str(unit["failure"][0]):
            raise ValueError(failure)
        yield unit


def use_one_core() -> None:
    """Keep image libraries from starting threads of their own in a task, which has one core."""
    cv2.setNumThreads(1)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def _make_unit(
    row: dict[str, np.ndarray], maker: "ray.ObjectRef[UnitMaker]", files: SharedFiles, first: int
) -> dict[str, np.ndarray]:
    import torch

    use_one_core()
    torch.set_num_threads(1)
    k, failure = first + int(row["id"][0]), ""
    units = ray.get(maker)
    try:
        place_files(files)
        arrays = units.unit(k)
    except (ValueError, OSError) as error:
        # Ray Data keeps the text of an exception only within a traceback, so what a user can repair travels as a row.
        arrays, failure = units.blank(k), str(error)
    return {**arrays, "failure": np.full(len(arrays["unit"]), failure)}
