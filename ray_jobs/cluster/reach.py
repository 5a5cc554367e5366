"""Whether the nodes of a cluster reach what a job reads and writes, asked of each of them before its workers start."""

import socket
from collections.abc import Sequence

import ray

from glsd.data.index import Index
from glsd.runs.directory import RunDirectory
from ray_jobs.cluster.asking import asked_of
from ray_jobs.cluster.files import SharedFiles, place_files
from ray_jobs.cluster.resources import DATA, Resources, has_label, worker_room
from ray_jobs.settings import DataOn


def check_reach(
    run: RunDirectory,
    index: Index,
    probed: Sequence[Index],
    files: SharedFiles,
    resources: Resources,
    data_on: DataOn,
) -> None:
    """Refuse a run directory that a node for workers does not see, or images that a node does not see which reads them.

    The first image of an index, the last and one between are read. Nodes that join later are not asked.

    Args:
        run: the directory, with a lease.
        index: images that are trained on, which tasks on the nodes of `data_on` read.
        probed: images that the training workers read themselves, for k-NN.
        files: the indexes' files.
        resources: what a node for workers has.
        data_on: where tasks run.

    Raises:
        ValueError: names the host and what it lacks.
    """
    assert run.token is not None
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if [node["NodeID"] for node in nodes] == [ray.get_runtime_context().get_node_id()]:
        return
    trains, decodes = (has_label(labels) for labels in (resources.labels, DATA))
    questions = {}
    for node in nodes:
        has_workers = trains(node) and worker_room([node["Resources"]], resources.per_worker) > 0
        has_tasks = data_on == "any" or (has_workers if data_on == "train" else decodes(node))
        indexes = [*([index] if has_tasks else []), *(probed if has_workers else [])]
        questions[node["NodeID"]] = [run if has_workers else None, run.token, indexes, files]
    for lack in asked_of(_lacks, questions).values():
        if lack:
            raise ValueError(lack)


def _lacks(run: RunDirectory | None, token: str, indexes: Sequence[Index], files: SharedFiles) -> str:
    """What this node does not reach, in words."""
    if run is not None:
        try:
            run.check_reached(token)
        except ValueError as error:
            return str(error)
    place_files(files)
    for index in indexes:
        for image_id in (0, len(index) // 2, len(index) - 1):
            try:
                index.read(image_id)
            except (ValueError, OSError) as error:
                return f"host {socket.gethostname()} does not reach the data; name data that all nodes reach: {error}"
    return ""
