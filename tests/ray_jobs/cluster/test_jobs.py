"""A job that is handed over to a cluster's dashboard: its log, and the environment of its processes."""

import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from tests.documents import ROOT, SMALL_NETWORK, TINY
from tests.images import labelled_folder

pytestmark = pytest.mark.ray
VARIABLES = {"AWS_PROFILE": "lab", "OMP_NUM_THREADS": "3"}


@contextmanager
def dashboard() -> Iterator[tuple[str, psutil.Process]]:
    """The address of the dashboard of a cluster of one node on free ports, and the node's first process."""
    with ExitStack() as open_ports:
        servers = [open_ports.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(4)]
        ports = [server.getsockname()[1] for server in servers]
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    options = [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
    with tempfile.TemporaryDirectory(prefix="r") as folder:  # the paths of Ray's sockets must be short
        options += [f"--temp-dir={folder}", "--num-cpus=3", "--object-store-memory=200000000", "--block"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--node-ip-address=127.0.0.1"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        with subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, env=environment) as node:
            try:
                yield f"http://127.0.0.1:{ports[1]}", psutil.Process(node.pid)
            finally:
                node.terminate()


def submitting(address: str) -> JobSubmissionClient:
    """A client of the dashboard, once it answers."""
    for _ in range(120):
        try:
            return JobSubmissionClient(address)
        except (ConnectionError, RuntimeError):
            time.sleep(1)
    raise AssertionError(f"no dashboard answers at {address}")


def environments(node: psutil.Process) -> Iterator[tuple[str, dict[str, str]]]:
    """The environment of each of Ray's workers, by what it does now."""
    for process in node.children(recursive=True):
        try:
            yield " ".join(process.cmdline()), process.environ()
        except psutil.NoSuchProcess:
            continue


def test_a_submitted_job_is_logged_and_all_its_processes_have_its_environment(tmp_path: Path) -> None:
    labelled_folder(tmp_path / "photos", num_images=32)
    (tmp_path / "work").mkdir()
    (tmp_path / "work/mine.yaml").write_text("preset: small_data\nseed: 7\n")
    words = f"pretrain mine.yaml --data {tmp_path}/photos --out {tmp_path}/run {TINY} {SMALL_NETWORK}"
    variables = VARIABLES | {"GLSD_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    with dashboard() as (address, node):
        client = submitting(address)
        job = client.submit_job(
            entrypoint=shlex.join([sys.executable, "-m", "ray_jobs.cli.main", *shlex.split(words)]),
            runtime_env={"working_dir": str(tmp_path / "work"), "env_vars": variables},
        )
        seen = dict[str, dict[str, str]]()
        while not (status := client.get_job_status(job)).is_terminal():
            seen |= environments(node)
            time.sleep(1)
        log = client.get_job_logs(job)
    assert status == JobStatus.SUCCEEDED, log
    for part in ("found 32 images", "epoch 1/1", json.loads((tmp_path / "run/summary.json").read_text())["timm"]):
        assert part in log
    assert (tmp_path / "cache").is_dir()
    for role in ("ray_jobs.cli.main pretrain", "ray::RayTrainWorker", "ray::Read_UnitTasks"):
        of_role = [found for command, found in seen.items() if role in command]
        assert of_role, f"{role} was not seen among {sorted(seen)}"
        for found in of_role:
            assert {name: found.get(name) for name in variables if name != "PYTHONPATH"} == {
                name: value for name, value in variables.items() if name != "PYTHONPATH"
            }
