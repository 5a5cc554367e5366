"""Nodes that come and go while a job runs; several of them are on one machine here."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from glsd.config import Config
from glsd.data.index import build_index
from glsd.data.units import UnitSource, made_in_turn
from glsd.training.loop import steps
from glsd.training.state import initial_state
from tests.ray_jobs.runs import STEPS_PER_EPOCH, TOTAL_STEPS, brief_run, json_lines, small_run

pytestmark = [pytest.mark.ray, pytest.mark.slow]

HEAD_AND_NODES = """
import os, subprocess, sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
from glsd.experiments import load_config
from glsd.runs.checkpoints import checkpoints
from ray_jobs.cluster.start import insist
from ray_jobs.pretraining.job import pretrain
from ray_jobs.pretraining.options import PretrainOptions
from ray_jobs.progress import ProgressLine
from ray_jobs.settings import JobSettings
from tests.ray_jobs.runs import json_lines

data, out, settings = sys.argv[1:]
memory = 200 * 2**20
head = {"num_cpus": 1, "object_store_memory": memory}
nodes = insist(lambda: Cluster(initialize_head=True, head_node_args=head))
os.environ["RAY_ADDRESS"] = nodes.address

def add_node():
    # It has room for one worker.
    return insist(lambda: nodes.add_node(num_cpus=2, object_store_memory=memory))

class Line(ProgressLine):
    # The progress line, which counts the starts without room.
    without_room = 0

    def phase(self, subject, detail=""):
        self.without_room += subject == "waiting for nodes with room for the workers"
        super().phase(subject, detail)

line = Line()

def begun(workers=1):
    job = JobSettings(workers=workers, cpus_per_worker=2)
    options = {"options": PretrainOptions(figures=False), "job": job, "line": line}
    job = threading.Thread(target=pretrain, args=(load_config(settings), data, out), kwargs=options)
    job.start()
    return job

def await_steps(job, count, workers=1):
    # So many of a number of workers, or the end of the job.
    while job.is_alive():
        lines = json_lines(Path(out, "metrics.jsonl"))[1:]
        if sum(line["workers"] == workers for line in lines) >= count:
            return
        time.sleep(0.05)
"""


def ran(script: str, config: Config, data: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script after the beginning that all have in common, on a run directory below a folder."""
    (folder / "run.yaml").write_text(config.to_yaml())
    command = [sys.executable, "-c", HEAD_AND_NODES + script, str(data), str(folder / "run"), str(folder / "run.yaml")]
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ended = subprocess.run(command, env=own | environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended


QUICK = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}

A_NODE_IS_LOST = """
first = add_node()
job = begun()
await_steps(job, 2)
nodes.remove_node(first, allow_graceful=False)
print("steps at the loss:", len(json_lines(Path(out, "metrics.jsonl"))) - 1, flush=True)
while job.is_alive() and line.without_room < 4:
    time.sleep(0.1)
add_node()
job.join()
nodes.shutdown()
"""


def test_a_run_outlasts_more_starts_without_room_than_a_run_that_never_ran(forty: Path, tmp_path: Path) -> None:
    """The only node with room for the worker is gone for four time-outs; three end a job of which no worker ran."""
    quick = QUICK | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3"}
    ended = ran(A_NODE_IS_LOST, small_run(), forty, tmp_path, **quick)
    assert "waiting for nodes with room for the workers" in ended.stderr
    lost_at = int(re.search(r"steps at the loss: (\d+)", ended.stdout)[1])  # type: ignore[index]
    assert lost_at < TOTAL_STEPS
    steps = [line["step"] for line in json_lines(tmp_path / "run" / "metrics.jsonl")]
    assert steps == list(range(TOTAL_STEPS + 1))


NODES_COME_AND_GO = """
first = add_node()
job = begun("1:3")
await_steps(job, 3)
second, third = add_node(), add_node()
await_steps(job, STEPS_PER_EPOCH + 1, workers=2)
nodes.remove_node(first, allow_graceful=False)
nodes.remove_node(second, allow_graceful=False)
job.join()
nodes.shutdown()
""".replace("STEPS_PER_EPOCH", str(STEPS_PER_EPOCH))


def test_a_run_has_as_many_workers_as_have_room_and_learns_what_it_would_have_learnt(
    forty: Path, tmp_path: Path
) -> None:
    """Three nodes have room for a worker each, and three workers cannot share a step of four units."""
    epochs = 12
    config = brief_run(**{"data.unit_size": 2, "optim.epochs": epochs, "evaluation.knn_every_epochs": 0})
    ended = ran(NODES_COME_AND_GO, config, forty, tmp_path, **QUICK)
    assert re.search(r"workers: 2 from step \d+ on, 1 before", ended.stderr)
    assert re.search(r"workers: 1 from step \d+ on, 2 before", ended.stderr)
    lines = json_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(epochs * STEPS_PER_EPOCH + 1))
    assert {line["workers"] for line in lines} == {1, 2}

    source, device = UnitSource(config, build_index(forty, config.data), None, "worker"), torch.device("cpu")
    state, units = initial_state(config, device), made_in_turn(source, range(source.num_units))
    alone = [reading.metrics["loss"] for reading in steps(state, units, config, STEPS_PER_EPOCH, device)]
    assert [line["loss"] for line in lines[1:]] == pytest.approx(alone, rel=1e-4)


A_NODE_WILL_BE_TAKEN_AWAY = """
spot = add_node()
job = begun()
await_steps(job, 2)
drain = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", nodes.address]
drain += ["--node-id", spot.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "sold"]
drain += ["--deadline-remaining-seconds", "900"]
subprocess.run(drain, check=True, stdout=sys.stderr)
saved = set()
while job.is_alive():
    saved |= set(checkpoints(out))
    time.sleep(0.05)
print("saved:", *sorted(saved))
nodes.shutdown()
"""


def test_a_notice_that_a_node_will_be_taken_away_saves_a_checkpoint_at_once_and_the_run_goes_on(
    forty: Path, tmp_path: Path
) -> None:
    epochs = 25  # longer than the notice takes to arrive
    config = small_run(**{"optim.epochs": epochs, "evaluation.knn_every_epochs": 0})
    watcher = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.2"}
    ended = ran(A_NODE_WILL_BE_TAKEN_AWAY, config, forty, tmp_path, **watcher)
    assert "a node will be taken away; a checkpoint is saved now" in ended.stderr
    saved = list(map(int, ended.stdout.rpartition("saved:")[2].split()))
    assert any(step % STEPS_PER_EPOCH for step in saved)  # all others are at the end of an epoch
    assert max(saved) == epochs * STEPS_PER_EPOCH


A_CLUSTER_GROWS = """
import json, os, socket, sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from ray_jobs.cluster.growing import awaited_resources
from ray_jobs.cluster.start import cluster, insist
from ray_jobs.progress import ProgressLine
from ray_jobs.settings import JobSettings

with socket.socket() as free:
    free.bind(("", 0))
    port = free.getsockname()[1]
address = f"{ray.util.get_node_ip_address()}:{port}"
memory = 200 * 2**20
node = {"node_config": {}, "min_workers": 0}
worker = {**node, "max_workers": 2, "labels": {"role": "train"}}
worker["resources"] = {"CPU": 2, "object_store_memory": memory}
commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
config = {
    **{f"{name}_commands": [] for name in commands},
    "cluster_name": "test", "max_workers": 2, "idle_timeout_minutes": 5, "upscaling_speed": 10, "file_mounts": {},
    "cluster_synced_files": [], "auth": {}, "head_node_type": "ray.head.default",
    "provider": {"type": "fake_multinode", "launch_multiple": True, "gcs_address": address},
    "available_node_types": {"worker": worker, "ray.head.default": {**node, "resources": {"CPU": 0}, "max_workers": 0}},
}
path = Path(sys.argv[1], "cluster.json")
path.write_text(json.dumps(config))
head = {"num_cpus": 0, "object_store_memory": memory, "gcs_server_port": port, "autoscaling_config": str(path)}
nodes = insist(lambda: Cluster(initialize_head=True, head_node_args=head))
os.environ["RAY_ADDRESS"] = nodes.address
two = {"workers": 2, "cpus_per_worker": 1.5, "wait_for_nodes": 5}
said = []
with cluster(JobSettings()), ProgressLine() as line:
    for settings in ({"wait_for_nodes": 0}, {}, {"gpu": False}):
        try:
            found = awaited_resources(JobSettings(**two | settings), [2], line)
            said.append([found.workers, found.labels, len([node for node in ray.nodes() if node["Alive"]])])
        except ValueError as error:
            said.append(str(error))
    said.append(len([group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]))
print(json.dumps(said))
nodes.shutdown()
"""


def test_a_job_waits_for_nodes_that_an_autoscaler_starts_for_it(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "0", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    environment["RAY_gcs_rpc_server_reconnect_timeout_s"] = "5"  # its nodes end when the head has ended
    command = [sys.executable, "-c", A_CLUSTER_GROWS, str(tmp_path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    at_once, undecided, found, num_reserved = json.loads(ended.stdout.splitlines()[-1])
    no_room = "2 workers of 1.5 CPUs leave 0 of the cluster's 0 CPUs for the stream"
    assert at_once.startswith(no_room)
    assert undecided.startswith(no_room)
    assert undecided.endswith("Use --gpu True or --gpu False, and the job waits for nodes")
    assert found == [2, {"role": "train"}, 3]
    assert num_reserved == 0  # what asked for the nodes does not keep them
    assert "waiting for nodes 0 of 2 workers have room, at most 5 more minutes" in ended.stderr
