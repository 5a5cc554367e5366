"""A cluster whose nodes share no folder: each has a home with a cache of its own, and data and runs are on a store."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.glsd.data.encoding import padded
from tests.glsd.storage.object_store import object_store
from tests.images import labelled_folder
from tests.ray_jobs.runs import TOTAL_STEPS, brief_run, check_same_training, json_lines

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MOUNT_A_DISK = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs "$HOME" && exec "$@"', "sh"]
"""Begins a command that sees an empty home of its own, and everything else as it is."""


def can_mount() -> bool:
    """Whether this process may give another one a disk of its own."""
    try:
        command, environment = [*MOUNT_A_DISK, "true"], os.environ | {"HOME": "/tmp"}
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:  # not on Linux
        return False


TWO_DISKS = """
import json, os, shutil, subprocess, sys, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from glsd.experiments import load_config
from glsd.storage.cache import cache_folder
from ray_jobs.cluster.start import cluster, insist
from ray_jobs.pretraining.job import pretrain
from ray_jobs.pretraining.options import PretrainOptions
from ray_jobs.settings import JobSettings

settings, bucket, options, *mount = sys.argv[1:]
memory = 200 * 2**20
head = {"num_cpus": 3, "object_store_memory": memory, "include_dashboard": False}
nodes = insist(lambda: Cluster(initialize_head=True, head_node_args=head))
os.environ["RAY_ADDRESS"] = nodes.address
start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--address", nodes.address, "--num-cpus=3"]
ports = ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]

def run(data, out, cpus_per_worker):
    job = JobSettings(workers=2, cpus_per_worker=cpus_per_worker, data_on="train")
    data, out = (name if name[0] == "/" else f"s3://bucket/{name}?{options}" for name in (data, out))
    pretrain(load_config(settings), data, out, PretrainOptions(figures=False), job)

def refused(data, out):
    try:
        run(data, out, 2)
    except ValueError as error:
        return str(error)

def packed():
    return {str(path.relative_to(bucket)): path.stat().st_mtime_ns for path in Path(bucket).glob("*.packed/*/*")}

with cluster(JobSettings()):
    run("photos", "one", 1)
    second = subprocess.Popen([*mount, *start, f"--object-store-memory={memory}", *ports], stdout=sys.stderr)
    try:
        while sum(node["Alive"] for node in ray.nodes()) < 2:
            assert second.poll() is None, "the second node did not start"
            time.sleep(0.1)
        own = shutil.copytree(f"{bucket}/photos", Path.home() / "photos")
        unseen = [refused(str(own), "of_own"), refused("photos", str(Path.home() / "run"))]
        run("photos", "two", 2)
        run("rows.parquet", "of_rows", 2)
        assert not packed()
        run("photos.parquet", "of_parquet", 2)
        before = packed()
        (index,) = cache_folder().glob("index-*-????????.arrow")
        index.unlink()
        run("photos.parquet", "of_parquet", 2)
        caches = cache_folder(), Path(f"/proc/{second.pid}/root{cache_folder()}")
        there = [sorted(path.name for path in cache.iterdir()) for cache in caches]
    finally:
        second.terminate()
        second.wait()
print(json.dumps({"packed": list(before), "again": packed() == before, "caches": there, "index": index.name,
                  "unseen": unseen}))
nodes.shutdown()
"""


@pytest.mark.skipif(not can_mount(), reason="mounting a disk that only one process sees needs Linux and root")
def test_nodes_that_share_no_folder_train_as_one_and_images_without_byte_ranges_are_packed_beside_the_run(
    tmp_path: Path,
) -> None:
    bucket, home = tmp_path / "bucket", tmp_path / "home"
    photos = labelled_folder(bucket / "photos", num_corrupt=1)
    home.mkdir()
    images = sorted(path for path in photos.rglob("*") if path.is_file())
    columns = {"image": [path.read_bytes() for path in images], "label": [path.parent.name for path in images]}
    pq.write_table(pa.table(columns), bucket / "rows.parquet", row_group_size=7)
    columns["image"] = list(map(padded, columns["image"]))
    pq.write_table(pa.table(columns), bucket / "photos.parquet")
    assert pq.ParquetFile(bucket / "photos.parquet").num_row_groups == 1
    (tmp_path / "run.yaml").write_text(brief_run().to_yaml())
    credentials = dict.fromkeys(("AWS_EC2_METADATA_DISABLED", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "true")
    others = {name: value for name, value in os.environ.items() if name not in ("GLSD_CACHE", "XDG_CACHE_HOME")}
    with object_store(tmp_path) as address:
        options = f"endpoint_override={address}&scheme=http&region=us-east-1"
        command = [sys.executable, "-c", TWO_DISKS, str(tmp_path / "run.yaml"), str(bucket), options, *MOUNT_A_DISK]
        environment = others | credentials | {"HOME": str(home)}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout.splitlines()[-1])

    data, run = said["unseen"]
    assert re.match(r"host \S+ does not reach the data; name data that all nodes reach: .*photos/", data)
    assert re.match(r"the worker on host \S+ does not find .*home/run/lease\.json.*; name an --out", run)
    assert not (bucket / "of_own/config.yaml").exists()
    for name in ("two", "of_rows", "of_parquet"):
        check_same_training(bucket / "one", bucket / name)
        assert [line["step"] for line in json_lines(bucket / name / "metrics.jsonl")] == list(range(TOTAL_STEPS + 1))
    (tar,) = said["packed"]
    assert tar.startswith("of_parquet.packed/packed-")
    assert said["again"], "it was packed again"
    first, second = said["caches"]
    assert said["index"] in second  # it worked for the run, and had this only from the other node
    assert not [name for name in [*first, *second] if name.startswith("packed-")]
