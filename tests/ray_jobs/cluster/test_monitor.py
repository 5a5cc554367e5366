import io
import time

import pytest
import ray

from ray_jobs.cluster.monitor import Handle, Monitor, Reporter, start_monitor, watch
from ray_jobs.progress import ProgressLine


def run(monitor: Handle) -> None:
    reporter = Reporter(monitor, "runs/mine")
    reporter.phase("k-NN")
    reporter.log({"step": 5.0, "total_steps": 5.0, "loss": 5.8, "knn": 0.431, "requests": 3})
    reporter.close()


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_what_a_worker_reports_is_shown_by_the_driver_and_its_monitor_may_die() -> None:
    stream, monitor = io.StringIO(), start_monitor()
    task = ray.remote(num_cpus=1)(run)
    with watch(monitor, ProgressLine(stream)):
        ray.get(task.remote(monitor))
    assert stream.getvalue() == "k-NN\nstep 5/5  loss 5.800  k-NN 43.1 %\n"

    ray.kill(monitor)
    with watch(monitor, ProgressLine(stream)):
        ray.get(task.remote(monitor))
        ray.get(task.remote(None))
    assert stream.getvalue().count("\n") == 2


class Busy(Monitor):
    """One that answers late."""

    def take(self) -> list[tuple[str, tuple[object, ...]]]:
        time.sleep(0.5)
        return super().take()


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_what_comes_late_from_a_busy_machine_is_shown_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_jobs.cluster.monitor.ARRIVAL_S", 0.1)
    stream, monitor = io.StringIO(), ray.remote(num_cpus=0)(Busy).remote()
    with watch(monitor, ProgressLine(stream)):
        for number in range(3):
            ray.get(monitor.push.remote("note", f"note {number}"))
            end = time.monotonic() + 60
            while f"note {number}" not in stream.getvalue() and time.monotonic() < end:
                time.sleep(0.01)
    assert stream.getvalue().splitlines() == ["note 0", "note 1", "note 2"]
