"""Ray Train as the jobs use it: workers that consume one ordered stream, watched while they do."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any, Final

import ray
import ray.train
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchTrainer

from glsd.runs.checkpoints import checkpoints
from glsd.runs.directory import RunDirectory
from ray_jobs.cluster.deaths import ProcessDied, death
from ray_jobs.cluster.growing import Widths
from ray_jobs.cluster.monitor import Handle, Reporter, watch
from ray_jobs.cluster.resources import Resources
from ray_jobs.cluster.stopping import is_asked
from ray_jobs.progress import ProgressLine
from ray_jobs.workers.gloo import NodeNetwork
from ray_jobs.workers.stream import Stream, Unit
from ray_jobs.workers.waiting import watched

RAY_TRAIN = "ray_train"
"""Folder of Ray Train's own notes in a run directory."""


def fit(
    worker: Callable[[Any, Iterator[Unit]], None],
    plan: Any,
    stream: Stream,
    run: RunDirectory,
    widths: Widths,
    monitor: Handle,
    line: ProgressLine,
) -> None:
    """Run `worker(plan, units)` on every training worker, until all have ended.

    The units of rank r of W are r, W + r, 2 * W + r, ... from the newest checkpoint of `run` to the end of the stream.
    Ray Train keeps its own notes in the folder of `run`. The line shows what the workers report to the monitor. After a
    failure the workers are started again, as many as have room then. They are also started again when more have room.

    Raises:
        BaseException: what a worker raised, without Ray's wrapping; KeyboardInterrupt after Ctrl-C.
    """
    named = (worker.__module__, worker.__qualname__)
    work = {"worker": named, "plan": ray.put(plan), "stream": stream, "run": run.location, "monitor": monitor}
    resources, has_run, num_failures, num_starts, num_waits = widths.first, False, 0, 0, 0
    line.phase("starting workers")
    with watch(monitor, line):
        while True:
            monitor.start.remote()
            if is_asked():  # to end: what is saved is the newest checkpoint
                return
            trainer, saved, workers = _trainer(work, run, resources), _newest(run.location), resources.workers
            try:
                with widths.growing(workers, monitor) as has_room:
                    trainer.fit()
                if not has_room.is_set() or _newest(run.location) * stream.units_per_step >= stream.num_units:
                    return
                has_run, num_failures, num_starts, num_waits = True, 0, 0, 0
            except ray.train.ControllerError as error:  # the workers were not started
                is_waiting = has_run and _has_no_room(error)
                num_starts, num_waits = num_starts + (not is_waiting), num_waits + is_waiting
                if widths.failed(workers):
                    num_starts = 0
                elif num_starts == _STARTS or num_waits == _MOST_WAITS:
                    raise _cause(error) from None
                line.phase("waiting for nodes with room for the workers")
            except ray.train.TrainingFailedError as error:
                has_run, num_starts, num_waits = True, 0, 0
                num_failures = 1 if _newest(run.location) > saved else num_failures + 1
                if num_failures > resources.max_failures:
                    raise _cause(error) from None
                if num_failures > 1:
                    widths.failed(workers)
            except KeyboardInterrupt:
                line.phase("stopping the workers")
                trainer.abort()
                raise
            resources = widths.now()
            if resources.workers != workers:
                line.note(f"workers: {resources.workers} from step {_newest(run.location):,} on, {workers} before")


_STARTS: Final = 3
"""Starts of the fewest workers, each of which waits a minute for room. A job of which no worker has run yet ends after
them: the cluster had the room when it was checked, so others have taken it. Workers that fail to start for another
reason would fail again.
"""
_MOST_WAITS: Final = 60
"""How often starts without room are tried again once workers have run: a lost node is replaced within the hour."""


def _newest(run: str) -> int:
    """The step of a run directory's newest checkpoint."""
    return max(checkpoints(run), default=0)


def _trainer(work: Mapping[str, Any], run: RunDirectory, resources: Resources) -> "_Trainer":
    return _Trainer(
        _work,
        train_loop_config=dict(work),
        torch_config=NodeNetwork(),
        scaling_config=ray.train.ScalingConfig(  # type: ignore[call-arg] # its stub is that of the old Train
            num_workers=resources.workers,
            use_gpu=resources.gpu,
            resources_per_worker=resources.per_worker,
            label_selector=resources.labels or None,
        ),
        run_config=ray.train.RunConfig(
            name=run.ascii_name,
            storage_path=f"{run.path}/{RAY_TRAIN}",
            storage_filesystem=run.filesystem,
            failure_config=ray.train.FailureConfig(
                max_failures=0,
                max_preemption_failures=0,
                controller_failure_limit=0,  # type: ignore[call-arg] # its stub is that of the old Train
            ),
        ),
    )


def _work(work: Mapping[str, Any]) -> None:
    """The worker, as Ray Train takes it: by name and references, since its controller unpickles this too before any
    worker starts. Its units are begun while its module is imported, models and all.
    """
    work["monitor"].worker_started.remote()
    context, stream = ray.train.get_context(), work["stream"]
    # One worker decides where all continue, since another might see a checkpoint more.
    newest = _newest(work["run"]) if context.get_world_rank() == 0 else 0
    first_unit = broadcast_from_rank_zero(newest) * stream.units_per_step
    rank, workers, workers_here = context.get_world_rank(), context.get_world_size(), context.get_local_world_size()
    units = stream.of_rank(first_unit, rank, workers, workers_here)
    if rank == 0:
        units = watched(units, Reporter(work["monitor"], "stream").note)
    module, name = work["worker"]
    getattr(import_module(module), name)(ray.get(work["plan"]), units)


class _Trainer(TorchTrainer):
    """Ray Train's trainer, for which Ctrl-C is a KeyboardInterrupt.

    This replaces a private method of Ray's, as there is no public way: Ray's own handler ends the process without a
    word, and without a handler nothing outside would know the controller whose workers are to be stopped.
    """

    _controller: ActorHandle[Any] | None = None

    def abort(self) -> None:
        """Stop the workers, if any have been started."""
        if self._controller is not None:
            with suppress(RayActorError):  # the controller ends this way once it has stopped them
                ray.get(self._controller.abort.remote())

    def _register_sigint_handler(self, controller: ActorHandle[Any]) -> None:
        self._controller = controller


def _has_no_room(error: ray.train.TrainingFailedError) -> bool:
    """Whether the cluster gave no room for the workers in time."""
    failure = error.controller_failure if isinstance(error, ray.train.ControllerError) else None
    return type(failure).__name__ == "WorkerGroupStartupTimeoutError"  # by name, since Ray has it in a private module


def _cause(error: ray.train.TrainingFailedError) -> BaseException:
    """What went wrong in a worker, without Ray's wrapping."""
    if _has_no_room(error):
        return ProcessDied(
            "the cluster gives no room for the workers: other jobs use it, or a lost node has not been replaced (see "
            "`ray status`). Wait for it or use fewer --workers, then rerun the command to resume"
        )
    if isinstance(error, ray.train.WorkerGroupError):
        failures = [death(failure) for failure in error.worker_failures.values()]
        # What the death of one means to the others, a closed connection, says less.
        return next((failure for failure in failures if isinstance(failure, ProcessDied)), failures[0])
    return death(error.controller_failure) if isinstance(error, ray.train.ControllerError) else error
