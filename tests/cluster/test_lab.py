"""A cluster of `ray up` on machines of a lab, and what happens to its jobs: each host has a disk of its own, data and
runs are on an object store, and hosts lose power.
"""

import json
import re
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from glsd.experiments import load_config
from tests.cluster.lab import Lab, lab, lack
from tests.cluster.store import Store, start_store
from tests.cluster.training import check_as_alone
from tests.documents import ROOT
from tests.ray_jobs.runs import brief_run, complete_checkpoints

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(lack()), reason=lack())]

ROLES: Final = {"head": "", "train-1": "train", "train-2": "train", "data-1": "data"}
ENVIRONMENT: Final = {
    "RAY_AUTH_MODE": "token",
    "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    **dict.fromkeys(("AWS_EC2_METADATA_DISABLED", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "true"),
    # A lost host is noticed, and started again, within seconds.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
    "AUTOSCALER_UPDATE_INTERVAL_S": "2",
    "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "10",
    # What Ray does beside.
    "RAY_enable_worker_prestart": "0",
    "RAY_worker_niceness": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
}
READING_S: Final = 0.15
"""How long the store takes for an answer."""
DASHBOARD_ANSWERS: Final = """
import time, urllib.error, urllib.request
while True:
    try:
        urllib.request.urlopen("http://127.0.0.1:8265")
        break
    except urllib.error.HTTPError:
        break  # without a token
    except OSError:
        time.sleep(0.5)
"""
STEPS_PER_EPOCH: Final = 5
TIMEOUT_S: Final = 1200
EPOCHS: Final = 32
RUN: Final = brief_run(**{"optim.epochs": EPOCHS, "evaluation.knn_every_epochs": 0})
TRIAL: Final = brief_run(**{"optim.epochs": 1, "optim.warmup_epochs": 0})


@dataclass
class Cluster:
    """A running cluster, and the store of its network."""

    lab: Lab
    store: Store

    def submit(self, name: str, *command: str) -> tuple["subprocess.Popen[str]", Path]:
        """`ray job submit` of a command of glsd, and the file into which what it prints goes, as it is printed."""
        log = self.lab.folder / f"{name}.log"
        with log.open("w") as stream:
            job = ("ray", "job", "submit", "--working-dir", "work", "--submission-id", name, "--", "glsd", *command)
            return self.lab.start(*job, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL), log


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """`ray up` of docs/lab.yaml with the addresses of these hosts, whose roles stand in a file."""
    folder = tmp_path_factory.mktemp("cluster") / "lab"
    with lab(folder, ENVIRONMENT, list(ROLES)) as made:
        (made.home / "work").mkdir()
        (made.home / "work" / "run.yaml").write_text(RUN.to_yaml())
        (made.home / "work" / "trial.yaml").write_text(TRIAL.to_yaml())
        (made.home / ".ray").mkdir()
        (made.home / ".ray" / "auth_token").write_text(secrets.token_hex(32))
        for name, role in ROLES.items():
            (made.hosts[name].folder / "home" / "role").write_text(role)
        (made.home / "lab.yaml").write_text(yaml.safe_dump(configuration(made)))
        store = start_store(made, READING_S)
        for attempt in (1, 2, 3):  # Ray waits half a minute for a node of its own, which a busy machine may exceed
            told = made.run("ray", "up", "-y", "--no-config-cache", "lab.yaml", check=attempt == 3)
            if "timed out during startup" not in told:
                break
        made.start("ray", "dashboard", "lab.yaml", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        made.run("python", "-c", DASHBOARD_ANSWERS)
        yield Cluster(made, store)


def configuration(made: Lab) -> dict[str, Any]:
    """docs/lab.yaml for this lab."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "docs/lab.yaml").read_text("utf-8"))
    head, *others = [host.address for host in made.hosts.values()]
    config["provider"] |= {"head_ip": head, "worker_ips": others}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(made.key)}
    config["file_mounts"] = {"~/.ray/auth_token": str(made.home / ".ray" / "auth_token")}
    *before, start = config["worker_start_ray_commands"]
    start = re.sub(r"role=\$\(.*\)", "role=$(cat ~/role) --num-cpus=3 --object-store-memory=200000000", start)
    return config | {"worker_start_ray_commands": [*before, start]}


def until(condition: Callable[[], Any], job: "subprocess.Popen[str]", log: Path) -> None:
    """Wait for a condition while a job runs."""
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert job.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)


def test_a_run_that_is_stopped_loses_hosts_and_its_driver_ends_as_one_to_which_nothing_happened(
    cluster: Cluster,
) -> None:
    hosts, store = cluster.lab, cluster.store
    out = store.folder / "run"
    command = ["pretrain", "run.yaml", "--data", store.uri("flat"), "--out", store.uri("run")]
    command += ["--gpu", "False", "--cpus_per_worker", "1.9"]  # of a host's 3: one worker on each

    def saved() -> int:
        return max(complete_checkpoints(out), default=0)

    # The hosts may still be starting: the job waits for them. Then it is stopped.
    job, log = cluster.submit("stopped", *command, "--workers", "2", "--data_on", "data")
    until(lambda: saved() > 0, job, log)
    hosts.run("ray", "job", "stop", "stopped")
    job.wait(TIMEOUT_S)
    stopped_at = saved()
    assert f"stopped at step {stopped_at:,} of {EPOCHS * STEPS_PER_EPOCH}, which is saved" in log.read_text()
    head, data = (hosts.hosts[name].address for name in ("head", "data-1"))
    assert {data} <= store.readers("flat") <= {head, data}

    # It resumes, with images decoded anywhere. A host for images loses power: the workers stay.
    job, log = cluster.submit("losing", *command, "--workers", "1:2")
    until(lambda: saved() > stopped_at, job, log)
    hosts.cut_power("data-1")
    lost_at = saved()
    until(lambda: saved() >= lost_at + 2 * STEPS_PER_EPOCH, job, log)
    assert log.read_text().count("resuming at step") == 1

    # A host that trains loses power: one worker goes on alone. Both are back: the head starts Ray on them, and there
    # are two workers again.
    hosts.cut_power("train-2")
    until(lambda: re.search(r"workers: 1 from step \d+ on, 2 before", log.read_text()), job, log)
    hosts.boot("data-1")
    hosts.boot("train-2")
    until(lambda: re.search(r"workers: 2 from step \d+ on, 1 before", log.read_text()), job, log)
    grown_at = saved()
    until(lambda: saved() >= grown_at + 2 * STEPS_PER_EPOCH, job, log)

    # The driver is killed. The same command resumes.
    hosts.ssh("head", "pkill -KILL -x glsd")
    assert job.wait(TIMEOUT_S) != 0
    job, log = cluster.submit("last", *command, "--workers", "2")
    assert job.wait(TIMEOUT_S) == 0, log.read_text()
    assert "resuming at step" in log.read_text()
    assert (out / "summary.json").exists()
    check_as_alone(out, RUN, store.folder / "flat")


def test_a_sweep_of_two_trials_trains_on_the_hosts_as_in_one_process(cluster: Cluster) -> None:
    store, out = cluster.store, cluster.store.folder / "sweep"
    command = ["sweep", "learning_rate", "--base", "trial.yaml", "--data", store.uri("classes"), "--gpu", "False"]
    command += ["--out", store.uri("sweep"), "--grid", "optim.base_lr=0.01,0.02", "--pairs", "8"]
    command += ["--concurrent", "2"]
    job, log = cluster.submit("sweep", *command)
    assert job.wait(TIMEOUT_S) == 0, log.read_text()
    trials = sorted((out / "trials").iterdir())
    assert [json.loads((trial / "outcome.json").read_text())["status"] for trial in trials] == 2 * ["finished"]
    for trial in trials:
        check_as_alone(trial, load_config(str(trial / "config.yaml")), store.folder / "classes")


def test_ray_down_ends_ray_on_all_hosts(cluster: Cluster) -> None:
    cluster.lab.run("ray", "down", "-y", "lab.yaml")
    for name in ROLES:  # the others notice that the head has ended
        cluster.lab.ssh(name, "timeout 180 sh -c 'while pgrep -x raylet; do sleep 1; done'")
