"""Messages for Ray's processes that died."""

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
"""What Ray raises when a process has died that a job needs."""


class ProcessDied(RuntimeError):
    """A process of the job has died, which is not an error of the job itself."""


def death(error: BaseException) -> BaseException:
    """The error, or a `ProcessDied` in words where Ray says that a process has died.

    >>> death(exceptions.OutOfMemoryError("the node runs low on memory"))
    ProcessDied('a process of the job died, possibly out of memory. Use fewer --workers or a smaller data.unit_size, \
then rerun the command to resume. Ray says: the node runs low on memory')
    >>> death(ValueError("data.unit_size 3"))
    ValueError('data.unit_size 3')
    """
    error = getattr(error, "health_check_failure", error)  # as Ray Train wraps it
    if not isinstance(error, DEATHS) or getattr(error, "actor_init_failed", False):  # that has a cause of its own
        return error
    said = " ".join(str(error).split()).rpartition("The actor is dead because ")[2]
    return ProcessDied(
        "a process of the job died, possibly out of memory. Use fewer --workers or a smaller data.unit_size, then "
        f"rerun the command to resume. Ray says: {textwrap.shorten(said, 300)}"
    )
