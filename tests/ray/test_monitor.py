import io

import pytest
import ray

from ray_jobs.monitor import Handle, ProgressLine, Reporter, start_monitor, watch


def run(monitor: Handle) -> None:
    reporter = Reporter(monitor, "runs/mine")
    reporter.phase("k-NN")
    reporter.log({"step": 5.0, "total_steps": 5.0, "loss": 5.8, "knn": 0.431})
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
