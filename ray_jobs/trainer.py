"""Ray Train as the jobs use it: workers that consume one ordered stream, watched while they do."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray.data import Dataset
from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchTrainer

from ray_jobs.cluster import Resources
from ray_jobs.monitor import Handle, ProgressLine, watch
from ray_jobs.run_directory import RunDirectory
from ray_jobs.settings import JobSettings
from ray_jobs.stream import stream_options


def fit(
    worker: Callable[[dict[str, Any]], None],
    plan: Any,
    units: Callable[[], Dataset],
    run: RunDirectory,
    settings: JobSettings,
    resources: Resources,
    monitor: Handle,
    line: ProgressLine,
) -> None:
    """Run `worker({"plan": plan})` on every training worker, until all have ended.

    Args:
        worker: finds its units in the dataset shard "train"; rank r of W gets the units i * W + r.
        plan: what a worker needs.
        units: the stream from where the workers are to start; asked anew whenever they are started.
        run: the folder in which Ray Train keeps its own notes.
        settings: how many workers.
        resources: what `check_resources` gave for them.
        monitor: where the workers report.
        line: shows what they report.

    Raises:
        BaseException: what a worker raised, without Ray's wrapping; KeyboardInterrupt after Ctrl-C.
    """
    trainer = TorchTrainer(
        worker,
        train_loop_config={"plan": plan},
        scaling_config=ScalingConfig(
            num_workers=settings.workers, use_gpu=resources.gpu, resources_per_worker=resources.per_worker
        ),
        run_config=RunConfig(
            name=run.name,
            storage_path=run.storage_path,
            storage_filesystem=run.filesystem,
            failure_config=FailureConfig(  # an unschedulable start would be tried for ever by default
                max_failures=resources.max_failures,
                controller_failure_limit=2,  # type: ignore[call-arg] # its stub is that of the old Train
            ),
        ),
        datasets={"train": units},
        dataset_config=DataConfig(execution_options=stream_options()),
    )
    line.phase("starting workers")
    with watch(monitor, line), _keyboard_interrupts():
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _cause(error) from None


@contextmanager
def _keyboard_interrupts() -> Iterator[None]:
    """Python's way with Ctrl-C in place of Ray Train's, which stops the workers, exits, and would stay for good."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _cause(error: TrainingFailedError) -> BaseException:
    """What went wrong in a worker, without Ray's wrapping."""
    if isinstance(error, WorkerGroupError):
        return next(iter(error.worker_failures.values()), error)
    return error
