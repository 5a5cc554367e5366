"""What a cluster is refused for, whatever it is, and addresses at which there is none."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psutil
import pytest
from pydantic import ValidationError

from glsd.config import Config
from ray_jobs.cluster.resources import Resources, check_ranks, widths
from ray_jobs.cluster.start import check_address, cluster, insist
from ray_jobs.settings import JobSettings
from tests.images import labelled_folder


def test_workers_of_one_run_do_not_share_a_gpu() -> None:
    resources = Resources(2, True, {"CPU": 1, "GPU": 0.5}, {}, None, 0, "device")
    with pytest.raises(ValueError, match=r"2 workers of 0\.5 GPUs each would share GPUs, .* use --workers 1"):
        check_ranks(JobSettings(workers=2, gpus_per_worker=0.5), resources)
    check_ranks(JobSettings(workers=1, gpus_per_worker=0.5), resources)
    check_ranks(JobSettings(workers=2), resources)


@pytest.mark.parametrize(
    ("workers", "found"), [(4, [4]), ("4", [4]), ("1:8", [1, 2, 4, 8]), ("3:7", [4]), ("2:2", [2]), ("5:99", [8, 16])]
)
def test_of_a_range_the_numbers_of_workers_are_used_that_can_share_a_step(workers: int | str, found: list[int]) -> None:
    sixteen_units = Config().with_overrides({"optim.batch_size": 64, "data.unit_size": 4})
    assert widths(sixteen_units, JobSettings(workers=workers)) == found


@pytest.mark.parametrize("workers", [0, -1, "8:1", "0:2", "1:", "1:2:3", "two", ""])
def test_what_is_no_range_of_workers_is_refused(workers: int | str) -> None:
    with pytest.raises(ValidationError, match=f"{workers!r} is neither a number of workers nor a range of them"):
        JobSettings(workers=workers)


def test_a_range_is_refused_where_the_number_cannot_change() -> None:
    with pytest.raises(ValueError, match="--workers 1:8: only pretrain takes a range; name one number"):
        _ = JobSettings(workers="1:8").num_workers


def test_a_start_that_takes_too_long_is_tried_three_times_and_every_other_error_passes() -> None:
    errors: list[Exception] = [Exception("The current node timed out during startup."), ValueError("num_cpus")] * 2

    def start() -> str:
        if errors:
            raise errors.pop(0)
        return "started"

    for _ in range(2):  # a time-out, and then the error of the second start
        with pytest.raises(ValueError, match="num_cpus"):
            insist(start)
    assert insist(start) == "started"
    errors += [Exception("The current node timed out during startup.")] * 4
    with pytest.raises(RuntimeError, match="three times: the machine is too busy"):
        insist(start)
    assert len(errors) == 1


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A port where a connection is taken and nothing is ever said, as behind a firewall that drops packets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:8265", r"takes jobs from `ray job submit` and belongs in RAY_API_SERVER_ADDRESS"),
        ("ray://127.0.0.1:10001", r"that of Ray Client, .* on a node of the cluster with RAY_ADDRESS=auto"),
        *(
            (name, f"RAY_ADDRESS '{name}' is neither HOST:PORT")
            for name in ("head", "head:", ":6379", "head:six", "a/b:1")
        ),
        ("head:6379/x", "is neither HOST:PORT, such as 10.0.0.1:6379, nor auto"),
    ],
)
def test_an_address_of_something_else_is_refused_with_what_is_meant(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_address(address)


def test_an_address_that_refuses_connections_is_named_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(
        ConnectionError, match=rf"nothing answers at RAY_ADDRESS 127\.0\.0\.1:{port} \(.*refused\); start"
    ):
        check_address(f"127.0.0.1:{port}")
    assert time.monotonic() - started < 5


def test_a_server_that_is_not_ray_is_told_as_such() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("[::]:0")
    server.start()
    with pytest.raises(
        ConnectionError, match=rf"no Ray answers at RAY_ADDRESS 127\.0\.0\.1:{port}; .* Ray says: .*Method"
    ):
        check_address(f"127.0.0.1:{port}")
    server.stop(0)


def a_job_at(server: socket.socket, folder: Path) -> subprocess.Popen[str]:
    """A command that needs Ray and little else, when it has looked for one at the server."""
    photos, address = labelled_folder(folder / "photos", num_images=4), f"127.0.0.1:{server.getsockname()[1]}"
    command = [sys.executable, "-m", "ray_jobs.cli.main", "pack", str(photos), str(folder / "shards")]
    environment = os.environ | {"RAY_ADDRESS": address}
    started = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    server.accept()[0].close()
    return started


@pytest.mark.slow
def test_a_job_ends_within_a_minute_and_in_one_line_where_nothing_speaks(silent: socket.socket, tmp_path: Path) -> None:
    started, since = a_job_at(silent, tmp_path), time.monotonic()
    out, said = started.communicate(timeout=300)
    assert time.monotonic() - since < 60
    assert (started.returncode, out) == (2, "")
    *before, last = said.splitlines()
    assert last.startswith("glsd: no Ray answers at RAY_ADDRESS 127.0.0.1:")
    assert "; start a cluster with `ray start --head`, or unset RAY_ADDRESS" in last
    assert not any("glsd: " in line or ".cc:" in line for line in before)


def test_ctrl_c_is_heard_while_ray_is_waited_for(interruptible: None, silent: socket.socket, tmp_path: Path) -> None:
    started = a_job_at(silent, tmp_path)
    while not psutil.Process(started.pid).children():
        time.sleep(0.1)
    started.send_signal(signal.SIGINT)
    sent = time.monotonic()
    _, said = started.communicate(timeout=300)
    assert time.monotonic() - sent < 10
    assert started.returncode == 130
    assert said.endswith("\nglsd: interrupted; rerun the same command to resume\n")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")  # Ray sets its own deprecated fields
@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_too_long_for_sockets_is_refused_with_its_remedy(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / ("ö" * 40)))
    length = len(os.fsencode(tmp_path)) + 1 + 80
    message = rf"{variable} .* is {length} bytes long, .* room for \d\d in it; set RAY_TMPDIR"
    with pytest.raises(ValueError, match=message), cluster(JobSettings()):
        pass
    assert not any(tmp_path.iterdir())
