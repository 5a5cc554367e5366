"""The stream: units of a training or of a probe, made by Ray Data's CPU tasks.

Rank r of W trains on the units first + r, first + r + W, ... and on no others. So every training worker has an
execution of its own, whose coordinator is a process beside it, and its units are made near it. A task makes a few units
as one block. What Ray Data keeps for the length of an execution is bounded, as an execution covers a bounded number of
tasks; the next one has been started when it ends. A unit is a function of its number, so nothing else carries over.

Ray Train's workers import this module before the first unit comes. So torch, which only the tasks need, is imported by
the tasks.
"""

import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final

import cv2
import numpy as np
import ray
import ray.data
from PIL import AvifImagePlugin
from ray.data import Datasource, ExecutionResources, ReadTask
from ray.data.block import BlockAccessor, BlockMetadata
from ray.exceptions import RayError

from glsd.data.units import MAX_UNIT_BYTES, UnitMaker, made_in_turn
from glsd.storage.counts import counted
from ray_jobs.cluster.files import SharedFiles, place_files
from ray_jobs.settings import DataOn
from ray_jobs.workers.making import MAKING, Making

Unit = Mapping[str, np.ndarray]
_Beginning = Future[Iterator[Unit]]

TASK_UNITS: Final = 8
"""Of a task, which reads each unit while it makes the one before: so a task waits for an object store once."""
_BLOCK_BYTES: Final = MAX_UNIT_BYTES
"""A coordinator's work is by the block, but the first unit of a block comes with the last one."""
EXECUTION_TASKS: Final = 1024
"""Tasks of an execution. Ray Data plans all of them before the first one starts, in about a millisecond each."""
_AHEAD: Final = 8
"""An execution is started when this part of the one before is left, so that no worker waits for it."""
ATTEMPTS: Final = 3
"""How often the tasks of a unit are tried, each time by a new execution, before the training worker fails."""


@dataclass(frozen=True)
class Stream:
    """What makes units, in the object store, where tasks map its arrays and copy none; and how they are made."""

    maker: "ray.ObjectRef[UnitMaker]"
    num_units: int
    units_per_step: int
    unit_size: int
    unit_bytes: int
    files: SharedFiles
    """The indexes' files, for nodes that lack them."""
    data_on: DataOn
    execution_tasks: int

    def of_rank(self, first_unit: int, rank: int = 0, workers: int = 1, workers_here: int = 1) -> Iterator[Unit]:
        """The units first_unit + rank + i * workers to the end of the last epoch; tasks begin on them at once.

        `workers_here` of them are on this node, and share its part of the object store.

        Raises:
            ValueError: a unit can never be made; the message is the user's.
            OSError: images of a unit could not be read by any of several tasks.
        """
        numbers = range(first_unit + rank, self.num_units, workers)
        most_ahead = _object_store_bytes() / 2 / workers_here
        ahead = ThreadPoolExecutor(1)

        def begin(numbers: range) -> _Beginning:
            return ahead.submit(self._begun, numbers, most_ahead)

        return self._units(numbers, begin, begin(numbers))

    def _units(self, numbers: range, begin: "Callable[[range], _Beginning]", beginning: "_Beginning") -> Iterator[Unit]:
        span = self.execution_tasks * TASK_UNITS
        num_failures = 0
        while numbers:
            left, after, following = len(numbers[:span]), numbers[span:], None
            try:
                for unit in beginning.result():
                    yield _made(unit)
                    left, num_failures = left - 1, 0
                    if after and left == span // _AHEAD:
                        following = begin(after)
            except (OSError, RayError):
                num_failures += 1
                if num_failures == ATTEMPTS:
                    raise
            numbers = numbers[len(numbers[:span]) - left :]
            beginning = following if following and not left else begin(numbers)

    def _begun(self, numbers: range, most_ahead: float) -> Iterator[Unit]:
        """The units of the next execution, which has made the first one; so many bytes of them are made ahead."""
        if not numbers:
            return iter(())
        units = iter(self._execution(numbers[: self.execution_tasks * TASK_UNITS], most_ahead))
        return itertools.chain(list(itertools.islice(units, 1)), units)

    def _execution(self, numbers: range, most_ahead: float) -> Iterable[Unit]:
        """The units of these numbers, each block of one task."""
        block_units = max(1, min(TASK_UNITS, _BLOCK_BYTES // self.unit_bytes))
        units = ray.data.read_datasource(
            _UnitTasks(self, numbers),
            override_num_blocks=math.ceil(len(numbers) / TASK_UNITS),
            num_cpus=1,
            **_places(self.data_on),
        )
        units.set_name(f"units_{numbers[0]}_to_{numbers[-1]}")  # as the dashboard lists it
        options = units.context.execution_options
        options.preserve_order, options.resource_limits = True, ExecutionResources(object_store_memory=most_ahead)
        if block_units < TASK_UNITS:
            # A block ends with the unit that exceeds this, and is not cut as long as it exceeds it by less than a half.
            units.context.target_max_block_size = int((block_units - 0.25) * self.unit_bytes)
        units.context.execution_no_progress_timeout_s = -1  # k-NN or an upload may hold the training up for long
        (split,) = units.streaming_split(1)  # which has a process of its own on this node
        made: Iterable[Unit] = split.iter_batches(
            batch_size=self.unit_size, batch_format="numpy", prefetch_batches=block_units
        )
        return made


def share(
    maker: UnitMaker, files: SharedFiles, data_on: DataOn = "any", execution_tasks: int = EXECUTION_TASKS
) -> Stream:
    """The stream of what makes units, which is put into the object store."""
    order = maker.order
    return Stream(
        ray.put(maker),
        maker.num_units,
        order.units_per_step,
        order.unit_size,
        maker.unit_bytes,
        files,
        data_on,
        execution_tasks,
    )


def _made(unit: Unit) -> Unit:
    """The unit, if it could be made."""
    if failure := str(unit["failure"][0]):
        raise OSError(failure) if unit["may_pass"][0] else ValueError(failure)
    return unit


def _object_store_bytes() -> float:
    """The size of this node's part of the object store."""
    here = ray.get_runtime_context().get_node_id()
    return float(next(node["Resources"]["object_store_memory"] for node in ray.nodes() if node["NodeID"] == here))


def _places(data_on: DataOn) -> dict[str, Any]:
    """Where tasks run, as Ray is told."""
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    if data_on == "any":
        return {"label_selector": here, "fallback_strategy": [{"label_selector": {}}]}
    return {"label_selector": here if data_on == "train" else {"role": "data"}}


def use_one_core() -> None:
    """Keep image libraries from starting threads of their own in a task, which has one core."""
    cv2.setNumThreads(1)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1


class _UnitTasks(Datasource):
    """Units of these numbers, in order, a few by each read task: the tasks have no other work before or after."""

    def __init__(self, stream: Stream, numbers: range) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stream, self._numbers = stream, numbers

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all units."""
        return len(self._numbers) * self._stream.unit_bytes

    def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
        """The tasks, however many Ray Data would have liked. It asks in the coordinator, of those that it starts."""
        stream, numbers, coordinator = self._stream, self._numbers, os.getpid()
        parts = [numbers[first : first + TASK_UNITS] for first in range(0, len(numbers), TASK_UNITS)]
        return [
            ReadTask(
                partial(_blocks, stream.maker, stream.files, coordinator, part),
                BlockMetadata(len(part) * stream.unit_size, len(part) * stream.unit_bytes, None, None),
            )
            for part in parts
        ]


def _blocks(maker: "ray.ObjectRef[UnitMaker]", files: SharedFiles, coordinator: int, numbers: range) -> Iterator[Any]:
    """A block for each unit as it is made, of which Ray Data joins a few."""
    import torch

    use_one_core()
    torch.set_num_threads(1)
    units, num_made, begun_at, told = _kept(maker), 0, time.time(), counted()

    def block(arrays: dict[str, np.ndarray], failure: str = "", *, may_pass: bool = False) -> Any:
        nonlocal told
        before, told = told, counted()
        done = told - before
        making = Making(begun_at, time.time(), coordinator, done["requests"], done["cache_hits"], done["cache_misses"])
        return _block(arrays, making, failure, may_pass=may_pass)

    try:
        place_files(files)
        for arrays in made_in_turn(units, numbers):
            yield block(arrays)
            num_made += 1
    except (ValueError, OSError) as error:
        # Ray Data keeps the text of an exception only within a traceback, so it travels as a row. No worker takes a
        # unit after it.
        may_pass = isinstance(error, OSError) and not isinstance(error, PermissionError)
        yield block(units.blank(numbers[num_made]), str(error), may_pass=may_pass)


@lru_cache(maxsize=1)
def _kept(maker: "ray.ObjectRef[UnitMaker]") -> UnitMaker:
    """The maker, the same one for all tasks of this process: it keeps its index and its cache open."""
    units: UnitMaker = ray.get(maker)
    return units


def _block(arrays: dict[str, np.ndarray], making: Making, failure: str, *, may_pass: bool) -> Any:
    num_rows = len(arrays["unit"])
    told = {"failure": np.full(num_rows, failure), "may_pass": np.full(num_rows, may_pass)}
    return BlockAccessor.batch_to_block({**arrays, **told, MAKING: making.column(num_rows)})
