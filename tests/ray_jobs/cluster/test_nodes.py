"""What a cluster has: nodes, of which several are on one machine here, and GPUs, which there are none of."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from tests.ray_jobs.runs import TOTAL_STEPS, brief_run, json_lines

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TWO_NODES = """
import json, os, sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from glsd.experiments import load_config
from ray_jobs.cluster.resources import check_resources
from ray_jobs.cluster.start import cluster, insist
from ray_jobs.pretraining.job import pretrain
from ray_jobs.pretraining.options import PretrainOptions
from ray_jobs.settings import JobSettings

data, out, settings = sys.argv[1:]
memory = 200 * 2**20
head = {"num_cpus": 2, "object_store_memory": memory}
nodes = insist(lambda: Cluster(initialize_head=True, head_node_args=head))
insist(lambda: nodes.add_node(num_cpus=2, object_store_memory=memory))
os.environ["RAY_ADDRESS"] = nodes.address
said = []
with cluster(JobSettings()):
    said.append(ray.get_runtime_context().gcs_address == nodes.address)
    try:
        check_resources(JobSettings(cpus_per_worker=3))
    except ValueError as error:
        said.append(str(error))
pretrain(load_config(settings), data, out, PretrainOptions(figures=False), JobSettings(workers=2))
said.append(len(nodes.list_all_nodes()))
print(json.dumps(said))
nodes.shutdown()
"""


def test_a_run_on_two_nodes_and_what_they_have_no_room_for(forty: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(brief_run().to_yaml())
    command = [sys.executable, "-c", TWO_NODES, str(forty), str(tmp_path / "run"), str(tmp_path / "run.yaml")]
    environment = {name: value for name, value in os.environ.items() if name != "GLSD_CACHE"}
    ended = subprocess.run(
        command, env=environment | {"XDG_CACHE_HOME": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    is_named, no_room, num_nodes = json.loads(ended.stdout.splitlines()[-1])
    assert is_named
    assert no_room == (
        "1 workers of 3 CPUs each do not fit on the 2 nodes of this cluster, as each needs one node; "
        "use --workers 1 --cpus_per_worker 2 or less"
    )
    assert num_nodes == 2
    steps = [line["step"] for line in json_lines(tmp_path / "run" / "metrics.jsonl")]
    assert steps == list(range(TOTAL_STEPS + 1))


ROLES = """
import json, os, time
from dataclasses import dataclass
import numpy as np
import ray
from ray.cluster_utils import Cluster
from glsd.data.order import Order
from glsd.data.units import EncodedUnit
from ray_jobs.cluster.resources import check_resources
from ray_jobs.cluster.start import cluster, insist
from ray_jobs.settings import JobSettings
from ray_jobs.workers.stream import share

@dataclass(frozen=True)
class Places:
    # Units that hold the node that made them.
    num_units: int = 60
    unit_bytes: int = 2**26
    order = Order(0, 4, 4, 2)

    def read(self, k):
        return EncodedUnit(k, 0, [])

    def made(self, unit):
        time.sleep(0.2)
        return self.blank(unit.k)

    def blank(self, k):
        return {"unit": np.full(2, k), "node": np.array(2 * [ray.get_runtime_context().get_node_id()])}

@ray.remote(num_cpus=0.01, label_selector={"role": "train"})
def consume(data_on, seconds):
    here, made_here = ray.get_runtime_context().get_node_id(), []
    for unit in share(Places(), {}, data_on).of_rank(0):
        made_here.append(str(unit["node"][0]) == here)
        time.sleep(seconds)
    return made_here

def refused(**settings):
    try:
        check_resources(JobSettings(**settings))
    except ValueError as error:
        return str(error)

memory = 200 * 2**20
nodes = insist(lambda: Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": memory}))
os.environ["RAY_ADDRESS"] = nodes.address
insist(lambda: nodes.add_node(num_cpus=2, object_store_memory=memory, labels={"role": "train"}))
said = {}
with cluster(JobSettings()):
    said["no data"] = refused(data_on="data")
    insist(lambda: nodes.add_node(num_cpus=2, object_store_memory=memory, labels={"role": "data"}))
    while ray.cluster_resources()["CPU"] < 4:
        time.sleep(0.1)
    said["no room"] = refused(data_on="train", cpus_per_worker=2)
    said["no train"] = refused(workers=3)
    said["labels"] = check_resources(JobSettings(data_on="train")).labels
    for data_on in ("any", "train", "data"):
        said[data_on] = ray.get(consume.remote(data_on, 0))
print(json.dumps(said))
nodes.shutdown()
"""


def test_units_are_made_on_the_nodes_that_the_job_names_and_only_nodes_that_train_have_workers() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ended = subprocess.run([sys.executable, "-c", ROLES], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout.splitlines()[-1])
    assert said["no data"] == (
        "--data_on data needs nodes with the label role=data and a CPU, and there are none; start some with "
        "`ray start --labels role=data`, or use --data_on any"
    )
    assert said["no room"] == (
        "--data_on train needs a CPU for images on each node that trains, and 1 workers of 2 CPUs leave none on some; "
        "use --data_on any or a lower --cpus_per_worker"
    )
    assert (
        "3 workers of 1 CPUs each do not fit on the 1 nodes of this cluster that have the label role=train"
        in (said["no train"])
    )
    assert said["labels"] == {"role": "train"}
    assert all(said["train"])
    assert not any(said["data"])
    assert any(said["any"])
    assert not all(said["any"])  # its cores were busy


A_DATA_NODE_IS_LOST = """
import json, os, sys, time
from dataclasses import dataclass
from pathlib import Path
import numpy as np
import ray
from ray.cluster_utils import Cluster
from glsd.data.order import Order
from glsd.data.units import EncodedUnit
from ray_jobs.cluster.start import cluster, insist
from ray_jobs.settings import JobSettings
from ray_jobs.workers.stream import share

notes = Path(sys.argv[1])

@dataclass(frozen=True)
class Slow:
    # Units that hold their number and their node. Those from 16 on are never done on the first node.
    first_node: str
    num_units: int = 200
    unit_bytes: int = 2**22
    order = Order(0, 4, 4, 2)

    def read(self, k):
        return EncodedUnit(k, 0, [])

    def made(self, unit):
        node = ray.get_runtime_context().get_node_id()
        (notes / f"{unit.k} {node}").touch()
        while node == self.first_node and unit.k >= 16:
            time.sleep(0.1)
        return self.blank(unit.k)

    def blank(self, k):
        node = ray.get_runtime_context().get_node_id()
        return {"unit": np.full(2, k), "node": np.array([node] * 2), "pixels": np.full((2, 2**16), k)}

def begun(node):
    return {int(path.name.split()[0]) for path in notes.glob(f"* {node.node_id}")}

memory = 400 * 2**20
head = {"num_cpus": 0, "object_store_memory": memory, "include_dashboard": False}
nodes = insist(lambda: Cluster(initialize_head=True, head_node_args=head))
os.environ["RAY_ADDRESS"] = nodes.address
data = {"num_cpus": 2, "object_store_memory": memory, "labels": {"role": "data"}}
with cluster(JobSettings()):
    first = insist(lambda: nodes.add_node(**data))
    units = share(Slow(first.node_id), {}, "data", execution_tasks=8).of_rank(0)
    while len(begun(first)) < 18:  # two tasks are done and two never will be
        time.sleep(0.1)
    second = insist(lambda: nodes.add_node(**data))
    while not begun(second):  # it is ahead of the units that nobody has
        time.sleep(0.1)
    nodes.remove_node(first, allow_graceful=False)
    received = [(unit["unit"].tolist(), str(unit["node"][0]), np.unique(unit["pixels"]).tolist()) for unit in units]
print(json.dumps({"received": received, "first": sorted(begun(first)), "second": second.node_id}))
nodes.shutdown()
"""


def test_units_in_flight_on_a_node_that_is_lost_are_made_on_another_and_come_in_their_place_exactly_once(
    tmp_path: Path,
) -> None:
    """The lost node had made two blocks of eight units, and was at work on two others."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    quick = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
    command = [sys.executable, "-c", A_DATA_NODE_IS_LOST, str(tmp_path)]
    ended = subprocess.run(command, env=environment | quick, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout.splitlines()[-1])
    assert said["first"] == [*range(17), 24]
    assert [(rows, pixels) for rows, _, pixels in said["received"]] == [([k, k], [k]) for k in range(200)]
    assert {node for _, node, _ in said["received"][16:]} == {said["second"]}


def test_a_ray_of_its_own_asks_no_other_rays_dashboard_and_its_own_lists_trainings() -> None:
    code = """
import os
from ray_jobs.cluster.start import cluster
from ray_jobs.settings import JobSettings
names = ("RAY_API_SERVER_ADDRESS", "RAY_TRAIN_ENABLE_STATE_TRACKING")
print(*map(os.environ.get, names))
for dashboard in (False, True):
    with cluster(JobSettings(dashboard=dashboard)):
        print(*map(os.environ.get, names))
    print(*map(os.environ.get, names))
"""
    other = "http://127.0.0.1:9"
    unset = ("RAY_ADDRESS", "RAY_TRAIN_ENABLE_STATE_TRACKING")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    said = subprocess.check_output(
        [sys.executable, "-c", code], env=environment | {"RAY_API_SERVER_ADDRESS": other}, text=True
    )
    before, none, between, its_own, afterwards = said.splitlines()
    assert (before, none, between, afterwards) == (f"{other} None", "None 0", f"{other} None", f"{other} None")
    assert re.fullmatch(r"http://127\.0\.0\.1:8[23]\d\d 1", its_own)


def test_ray_starts_in_the_longest_folder_that_its_sockets_have_room_in() -> None:
    code = """
import os, re, sys, time
from pathlib import Path
import ray
from ray_jobs.cluster.start import cluster
from ray_jobs.settings import JobSettings
os.environ["RAY_TMPDIR"] = sys.argv[1] + "/" + 100 * "x"
try:
    with cluster(JobSettings(dashboard=True)):
        raise SystemExit("it was not refused")
except ValueError as error:
    room = int(re.search("room for (.*) in it", str(error))[1])
os.environ["RAY_TMPDIR"] = os.environ["RAY_TMPDIR"][:room]
with cluster(JobSettings(dashboard=True)):
    (sockets,) = Path(os.environ["RAY_TMPDIR"]).glob("ray/session_2*/sockets")
    for _ in range(600):  # the dashboard's come one by one
        if len(list(sockets.glob("dash_*"))) < 8:
            time.sleep(0.1)
    print(max(len(os.fsencode(path)) for path in sockets.iterdir()))
"""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    short = Path(tempfile.mkdtemp(dir="/tmp"))
    said = subprocess.check_output([sys.executable, "-c", code, str(short)], env=environment, text=True)
    shutil.rmtree(short)
    assert said.split() == ["103" if sys.platform == "darwin" else "107"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPU of this machine, so nothing is refused")
def test_a_gpu_that_torch_cannot_use_is_refused_with_what_would_do() -> None:
    code = """
import ray
from ray_jobs.cluster.resources import check_resources
from ray_jobs.cluster.start import insist
from ray_jobs.settings import JobSettings
options = {"num_cpus": 2, "num_gpus": 1, "include_dashboard": False, "log_to_driver": False}
insist(lambda: ray.init(address="local", **options))
for gpu in (None, True, False):
    try:
        print(check_resources(JobSettings(gpu=gpu)).gpu)
    except ValueError as error:
        print(error)
"""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    said = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).splitlines()
    refusal = (
        f"there is a GPU, but torch {torch.__version__} cannot use it: it was built without CUDA, or the driver is"
    )
    assert said[0].startswith(refusal)
    assert said[0].endswith("install a torch that fits it, or use --gpu False")
    assert said[1:] == [said[0], "False"]
