"""A cluster of `ray up` on machines of a lab, and what happens to its jobs: each host has a disk of its own, data and
runs are on an object store, and hosts lose power.
"""

import json
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import torch
import yaml

from glsd.config import Config
from glsd.data.index import build_index
from glsd.data.units import UnitSource, made_in_turn
from glsd.runs.checkpoints import load_checkpoint
from glsd.training.loop import steps
from glsd.training.state import initial_state
from tests.cluster.lab import LAPTOP, Lab, lab, lack
from tests.documents import ROOT
from tests.images import labelled_folder
from tests.ray_jobs.runs import brief_run, complete_checkpoints, json_lines, leaves

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(lack()), reason=lack())]

ROLES: Final = {"head": "", "train-1": "train", "train-2": "train", "data-1": "data"}
ENVIRONMENT: Final = {
    "RAY_AUTH_MODE": "token",
    "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    **dict.fromkeys(("AWS_EC2_METADATA_DISABLED", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "true"),
    # A lost host is noticed, and started again, within seconds.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "3",
    "AUTOSCALER_UPDATE_INTERVAL_S": "2",
    "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "10",
    # What Ray does beside.
    "RAY_enable_worker_prestart": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
}
READING_S: Final = 0.05
"""How long the store takes for an answer."""
STEPS_PER_EPOCH: Final = 5
TIMEOUT_S: Final = 600
RUN: Final = brief_run(**{"optim.epochs": 24, "evaluation.knn_every_epochs": 0})
TRIAL: Final = brief_run(**{"optim.epochs": 1, "optim.warmup_epochs": 0})


@dataclass
class Cluster:
    """A running cluster, and the store of its network."""

    lab: Lab
    store: Path
    """The store's buckets."""
    options: str
    """Of URIs, which say where the store is."""

    def uri(self, name: str) -> str:
        """Of a folder of the store."""
        return f"s3://lab/{name}{self.options}"

    def submit(self, name: str, *command: str) -> tuple["subprocess.Popen[str]", Path]:
        """`ray job submit` of a command of glsd, and the file into which what it prints goes, as it is printed."""
        log = self.lab.folder / f"{name}.log"
        with log.open("w") as stream:
            job = ("ray", "job", "submit", "--working-dir", "work", "--submission-id", name, "--", "glsd", *command)
            return self.lab.start(*job, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL), log

    def readers(self, log: str) -> set[str]:
        """The hosts that have read images, by what the store has printed."""
        addresses = {host.address: name for name, host in self.lab.hosts.items()}
        return {addresses[reader] for reader in re.findall(r'^(\S+) .* "GET /lab/flat/', log, re.M)}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """`ray up` of docs/lab.yaml with the addresses of these hosts, whose roles stand in a file."""
    folder = tmp_path_factory.mktemp("cluster")
    bucket = folder / "lab" / "laptop" / "store" / "lab"
    with lab(folder / "lab", ENVIRONMENT, list(ROLES)) as made:
        work, config = made.home / "work", yaml.safe_load((ROOT / "docs/lab.yaml").read_text("utf-8"))
        labelled_folder(bucket / "photos", 40)
        (bucket / "flat").mkdir()
        for photo in (bucket / "photos").rglob("*.*"):
            shutil.copy(photo, bucket / "flat")
        work.mkdir()
        (work / "run.yaml").write_text(RUN.to_yaml())
        (work / "trial.yaml").write_text(TRIAL.to_yaml())
        for name, role in ROLES.items():
            (made.hosts[name].folder / "home" / "role").write_text(role)
        token = made.home / ".ray" / "auth_token"
        token.parent.mkdir()
        token.write_text(secrets.token_hex(32))
        head, *others = [host.address for host in made.hosts.values()]
        config["provider"] |= {"head_ip": head, "worker_ips": others}
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(made.key)}
        config["file_mounts"] = {"~/.ray/auth_token": str(token)}
        (*_, start) = config["worker_start_ray_commands"]
        start = re.sub(r"role=\$\(.*\)", "role=$(cat ~/role) --num-cpus=2 --object-store-memory=200000000", start)
        config["worker_start_ray_commands"][-1] = start
        (made.home / "lab.yaml").write_text(yaml.safe_dump(config))
        with (made.folder / "store.log").open("w") as log:
            server = made.start(
                "python", "-m", "tests.cluster.store", str(bucket.parent), LAPTOP, str(READING_S),
                stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
            assert server.stdout is not None
            address = server.stdout.readline().strip()
        made.run("ray", "up", "-y", "--no-config-cache", "lab.yaml")
        made.start("ray", "dashboard", "lab.yaml", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        yield Cluster(made, bucket, f"?endpoint_override={address}&scheme=http&region=us-east-1")


def until(condition: Callable[[], Any], job: "subprocess.Popen[str]", log: Path) -> None:
    """Wait for a condition while a job runs."""
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert job.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)


def alone(config: Config, photos: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The readings and the last state of a training in this process, without Ray."""
    source = UnitSource(config, build_index(photos, config.data), None, "worker")
    device = torch.device("cpu")
    state, units = initial_state(config, device), made_in_turn(source, range(source.num_units))
    readings = [reading.metrics for reading in steps(state, units, config, source.order.steps_per_epoch, device)]
    return readings, state.state_dict()


def check_as_alone(out: Path, config: Config, photos: Path) -> None:
    """A run directory holds the losses and weights of a training without Ray, but for the order of sums."""
    readings, state = alone(config, photos)
    lines = json_lines(out / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(len(readings) + 1))
    for line, reading in zip(lines[1:], readings, strict=True):
        same = ("step", "loss", "loss_global", "loss_local", "matched", "lr")
        assert {name: line[name] for name in same} == pytest.approx({name: reading[name] for name in same}, rel=1e-4)
    saved = leaves(load_checkpoint(str(out / f"checkpoints/step_{len(readings):08d}")))
    for name, value in leaves(state).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                saved[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_a_run_that_is_stopped_loses_hosts_and_its_driver_ends_as_one_to_which_nothing_happened(
    cluster: Cluster,
) -> None:
    out, store_log = cluster.store / "runs" / "one", cluster.lab.folder / "store.log"
    command = ["pretrain", "run.yaml", "--data", cluster.uri("flat"), "--out", cluster.uri("runs/one"), "--workers", "2"]
    command += ["--gpu", "False"]

    def saved() -> int:
        return max(complete_checkpoints(out), default=0)

    # The hosts may still be starting: the job waits for them. Then it is stopped.
    job, log = cluster.submit("stopped", *command, "--data_on", "data")
    until(lambda: saved() >= 2 * STEPS_PER_EPOCH, job, log)
    cluster.lab.run("ray", "job", "stop", "stopped")
    job.wait(TIMEOUT_S)
    stopped_at = saved()
    assert f"stopped at step {stopped_at:,} of 120, which is saved" in log.read_text()
    assert cluster.readers(store_log.read_text()) == {"head", "data-1"}  # the head looks at a few before the start

    # It resumes, with images decoded anywhere. A host for images loses power: the workers stay.
    job, log = cluster.submit("losing", *command)
    until(lambda: saved() >= stopped_at + 3 * STEPS_PER_EPOCH, job, log)
    cluster.lab.cut_power("data-1")
    lost_at = saved()
    until(lambda: saved() >= lost_at + 3 * STEPS_PER_EPOCH, job, log)
    assert log.read_text().count("resuming at step") == 1

    # A host that trains loses power, and both are back: the head starts Ray on them, and the workers start again.
    cluster.lab.cut_power("train-2")
    cluster.lab.boot("data-1")
    cluster.lab.boot("train-2")
    until(lambda: log.read_text().count("resuming at step") == 2, job, log)
    lost_at = saved()
    until(lambda: saved() >= lost_at + 2 * STEPS_PER_EPOCH, job, log)

    # The driver is killed. The same command resumes.
    cluster.lab.ssh("head", "pkill -KILL -x glsd")
    assert job.wait(TIMEOUT_S) != 0
    job, log = cluster.submit("last", *command)
    assert job.wait(TIMEOUT_S) == 0, log.read_text()
    assert re.search(r"resuming at step \d+ of 120", log.read_text())
    assert "finished" in (out / "summary.json").read_text() or True
    check_as_alone(out, RUN, cluster.store / "flat")


def test_a_sweep_of_two_trials_trains_on_the_hosts_as_in_one_process(cluster: Cluster) -> None:
    out = cluster.store / "sweeps" / "two"
    command = ["sweep", "learning_rate", "--base", "trial.yaml", "--data", cluster.uri("photos"), "--gpu", "False"]
    command += ["--out", cluster.uri("sweeps/two"), "--grid", "optim.base_lr=0.01,0.02", "--pairs", "8"]
    command += ["--concurrent", "2"]
    job, log = cluster.submit("sweep", *command)
    assert job.wait(TIMEOUT_S) == 0, log.read_text()
    trials = sorted((out / "trials").iterdir())
    assert [json.loads((trial / "outcome.json").read_text())["state"] for trial in trials] == 2 * ["finished"]


def test_ray_down_ends_ray_on_all_hosts(cluster: Cluster) -> None:
    cluster.lab.run("ray", "down", "-y", "lab.yaml")
    for name in cluster.lab.hosts:
        assert cluster.lab.ssh(name, "pgrep -x raylet || echo none") == "none\n", name
