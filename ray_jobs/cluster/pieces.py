"""Work in pieces as tasks of Ray Data, on all nodes."""

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import ray.data
from numpy.typing import NDArray
from ray import cloudpickle

from glsd.data.pieces import Each, Piece, Result, in_threads
from ray_jobs.cluster.start import cluster
from ray_jobs.settings import JobSettings

_MOST_TASKS: Final = 1000
"""Ray Data plans each of them before the first one starts."""
_FEW: Final = 16
"""Pieces that threads have done before tasks have started."""


def over_cluster(function: Callable[[Piece], Result], pieces: Sequence[Piece]) -> Iterator[tuple[int, Result]]:
    """The number and the result of each piece, as they are done; a ValueError or OSError of a piece is raised."""
    rows = [{"number": number, "piece": cloudpickle.dumps(piece)} for number, piece in enumerate(pieces)]
    done = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MOST_TASKS)).map_batches(
        partial(_results, function=function), batch_size=1, batch_format="numpy", num_cpus=1
    )
    for batch in done.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        for number, pickled in zip(batch["number"].tolist(), batch["result"], strict=True):
            result = pickle.loads(pickled)
            if isinstance(result, Exception):
                raise result
            yield number, result


def _results(rows: Mapping[str, NDArray[Any]], function: Callable[[Piece], Result]) -> dict[str, NDArray[Any]]:
    """A task. It returns what a user must mend, because Ray Data keeps only the traceback of an exception."""
    results = []
    for piece in rows["piece"]:
        try:
            result: Any = function(pickle.loads(piece))
        except (ValueError, OSError) as error:
            result = error
        results.append(cloudpickle.dumps(result))
    return {"number": rows["number"], "result": np.array(results, object)}


def each_on(job: JobSettings) -> Each:
    """Does many pieces on the job's cluster, which is started for them if it must be, and few in this process."""

    def each(function: Callable[[Piece], Result], pieces: Sequence[Piece]) -> Iterator[Result]:
        if len(pieces) < _FEW:
            yield from in_threads(function, pieces)
            return
        with cluster(job):
            early: dict[int, Result] = {}
            following = 0
            for number, result in over_cluster(function, pieces):
                early[number] = result
                while following in early:
                    yield early.pop(following)
                    following += 1

    return each
