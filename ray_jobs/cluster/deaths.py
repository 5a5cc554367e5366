"""Deaths of Ray's processes, in words."""

import textwrap

from ray import exceptions

DEATHS = (
    exceptions.ActorDiedError,
    exceptions.LocalRayletDiedError,
    exceptions.NodeDiedError,
    exceptions.OutOfMemoryError,
    exceptions.OwnerDiedError,
    exceptions.WorkerCrashedError,
)
"""What Ray raises when a process has died that a job cannot do without."""


class ProcessDied(RuntimeError):
    """A process of the job has died, for no fault of the job's own."""


def death(error: BaseException) -> BaseException:
    """An error of Ray in words, where it is that a process has died; any other as it is.

    >>> death(exceptions.OutOfMemoryError("the node runs low on memory"))
    ProcessDied('a process of the job died, perhaps for want of memory, of which fewer --workers or a smaller \
data.unit_size need less; the same command goes on where it was. Ray says: the node runs low on memory')
    >>> death(ValueError("data.unit_size 3"))
    ValueError('data.unit_size 3')
    """
    error = getattr(error, "health_check_failure", error)  # as Ray Train wraps it
    if not isinstance(error, DEATHS) or getattr(error, "actor_init_failed", False):  # that has a cause of its own
        return error
    said = " ".join(str(error).split()).rpartition("The actor is dead because ")[2]
    return ProcessDied(
        "a process of the job died, perhaps for want of memory, of which fewer --workers or a smaller data.unit_size "
        f"need less; the same command goes on where it was. Ray says: {textwrap.shorten(said, 300)}"
    )
