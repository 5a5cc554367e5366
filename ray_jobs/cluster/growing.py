"""Clusters that grow when they are asked to: a job waits for nodes that are still to come."""

import math
import os
import time
from typing import Final

from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from ray_jobs.cluster.resources import DATA, NoRoom, Resources, check_resources
from ray_jobs.progress import ProgressLine
from ray_jobs.settings import JobSettings

_LOOK_S: Final = 2.0


def awaited_resources(settings: JobSettings, line: ProgressLine) -> Resources:
    """The workers' resources, once the connected cluster has them, as `check_resources`.

    Until then the cluster is asked for nodes, and the line says how many workers have room. A Ray that is not named by
    RAY_ADDRESS was started for the job, and does not grow.

    Raises:
        ValueError: the cluster lacks them, also after `wait_for_nodes` minutes.
    """
    is_named = os.environ.get("RAY_ADDRESS", "") not in ("", "local")
    end = time.monotonic() + (60 * settings.wait_for_nodes if is_named else 0)
    request: PlacementGroup | None = None
    try:
        while True:
            try:
                return check_resources(settings)
            except NoRoom as lack:
                left_s = end - time.monotonic()
                if left_s <= 0:
                    raise
                if settings.gpu is None and "GPU" not in lack.per_worker:
                    raise ValueError(f"{lack}. Use --gpu True or --gpu False, and the job waits for nodes") from None
                if request is None:
                    bundles, labels = asked_for(settings, lack)
                    request = placement_group(bundles, bundle_label_selector=labels)  # never used
                has_room = f"{lack.room} of {settings.workers} workers have room"
                line.phase("waiting for nodes", f"{has_room}, at most {math.ceil(left_s / 60)} more minutes")
                time.sleep(min(_LOOK_S, left_s))
    finally:
        if request is not None:
            remove_placement_group(request)


def asked_for(settings: JobSettings, lack: NoRoom) -> tuple[list[dict[str, float]], list[dict[str, str]]]:
    """What is to be reserved, so that an autoscaler starts nodes with room for it, and the labels of these nodes."""
    workers, data = settings.workers, DATA if settings.data_on == "data" else {}
    return [*[lack.per_worker] * workers, {"CPU": 1.0}], [*[lack.labels] * workers, data]
