"""Clusters that grow and shrink: a job waits for nodes that are still to come, and has as many workers as have room."""

import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from ray_jobs.cluster.monitor import Handle
from ray_jobs.cluster.resources import DATA, NoRoom, Resources, check_resources
from ray_jobs.progress import ProgressLine
from ray_jobs.settings import JobSettings

_LOOK_S: Final = 2.0
_GROWTH_LOOK_S: Final = 5.0
"""Nodes that come together are taken together, as each change of the workers' number costs a start of them."""
_FAILED_S: Final = 300.0
"""How long a number of workers is not tried that could not be started, or whose workers failed twice without progress:
others use its room, or a new node lacks something.
"""


def awaited_resources(settings: JobSettings, widths: Sequence[int], line: ProgressLine) -> Resources:
    """The workers' resources, once the connected cluster has them, as `check_resources`.

    Until then the cluster is asked for nodes, and the line says how many workers have room. A Ray that is not named by
    RAY_ADDRESS was started for the job, and does not grow.

    Args:
        settings: of the job.
        widths: the numbers of workers that it may have, in ascending order. The largest with room is taken.
        line: shows what is waited for.

    Raises:
        ValueError: the cluster lacks them, also after `wait_for_nodes` minutes.
    """
    is_named = os.environ.get("RAY_ADDRESS", "") not in ("", "local")
    end = time.monotonic() + (60 * settings.wait_for_nodes if is_named else 0)
    request: PlacementGroup | None = None
    try:
        while True:
            try:
                return _widest(settings, widths)
            except NoRoom as lack:
                left_s = end - time.monotonic()
                if left_s <= 0:
                    raise
                if settings.gpu is None and "GPU" not in lack.per_worker:
                    raise ValueError(f"{lack}. Use --gpu True or --gpu False, and the job waits for nodes") from None
                if request is None:
                    bundles, labels = asked_for(settings.of_width(widths[-1]), lack)
                    request = placement_group(bundles, bundle_label_selector=labels)  # never used
                has_room = f"{lack.room} of {settings.workers} workers have room"
                line.phase("waiting for nodes", f"{has_room}, at most {math.ceil(left_s / 60)} more minutes")
                time.sleep(min(_LOOK_S, left_s))
    finally:
        if request is not None:
            remove_placement_group(request)


def asked_for(settings: JobSettings, lack: NoRoom) -> tuple[list[dict[str, float]], list[dict[str, str]]]:
    """What is to be reserved, so that an autoscaler starts nodes with room for it, and the labels of these nodes."""
    workers, data = settings.num_workers, DATA if settings.data_on == "data" else {}
    return [*[lack.per_worker] * workers, {"CPU": 1.0}], [*[lack.labels] * workers, data]


def _widest(settings: JobSettings, widths: Sequence[int], labels: Mapping[str, str] | None = None) -> Resources:
    """For the largest of these numbers of workers that has room; the NoRoom of the smallest if none has."""
    for workers in reversed(widths[1:]):
        try:
            return check_resources(settings.of_width(workers), labels)
        except NoRoom:
            continue
    return check_resources(settings.of_width(widths[0]), labels)


class Widths:
    """The numbers of workers that a job may have, in ascending order, and what each worker gets.

    A job with several of them has the largest for which its cluster has room. This is not Ray Train's own elasticity,
    which takes any number of workers, and ends them without having them save.
    """

    def __init__(self, settings: JobSettings, widths: Sequence[int], first: Resources) -> None:
        self._settings = settings.model_copy(update={"gpu": first.gpu})
        self._widths, self.first = widths, first
        self._failed: dict[int, float] = {}

    def now(self) -> Resources:
        """For the next start: the largest number with room on the nodes that are up; the smallest if none has, whose
        room is to be waited for.
        """
        usable = [workers for workers in self._widths if self._failed.get(workers, 0) < time.monotonic()]
        try:
            return self.first._replace(workers=_widest(self._settings, usable, self.first.labels).workers)
        except ValueError:  # nodes were lost
            return self.first._replace(workers=usable[0])

    def failed(self, workers: int) -> bool:
        """Leave this number out for a while, unless it is the smallest; whether it is left out."""
        if is_left_out := workers > self._widths[0]:
            self._failed[workers] = time.monotonic() + _FAILED_S
        return is_left_out

    @contextmanager
    def growing(self, workers: int, monitor: Handle) -> Iterator[threading.Event]:
        """Within this block, once so many workers run, the cluster is asked for nodes for the most.

        As soon as more of them have room, it is reserved up to the end of the block, the monitor asks the workers to
        save and to end, and the event is set.
        """
        has_room, ended = threading.Event(), threading.Event()
        thread = threading.Thread(target=self._ask, args=(workers, monitor, has_room, ended), name="glsd-growing")
        if workers < self._widths[-1]:
            thread.start()
        try:
            yield has_room
        finally:
            ended.set()
            if thread.ident is not None:
                thread.join()

    def _ask(self, workers: int, monitor: Handle, has_room: threading.Event, ended: threading.Event) -> None:
        wanted, request, asks = 0, None, True
        try:
            while not ended.wait(_GROWTH_LOOK_S):
                if not ray.get(monitor.has_started.remote()):
                    continue  # they may still wait for room, which is theirs before it is that of more
                # Room that the nodes have which are up may be another job's, so what is wanted is reserved.
                before, with_room = wanted, self.now().workers
                wanted = with_room if with_room > workers else self._widths[-1] if asks else 0
                if wanted != before:
                    if request is not None:
                        remove_placement_group(request)
                    more = max(0, wanted - workers)
                    labels = [self.first.labels] * more
                    request = (
                        placement_group([self.first.per_worker] * more, bundle_label_selector=labels) if more else None
                    )
                elif request is not None and request.wait(1):
                    asks = with_room > workers  # or nothing would be left to make images on
                    if asks:
                        has_room.set()
                        monitor.stop.remote()
                        ended.wait()
        except RayError:
            return  # the cluster is gone, or the monitor, which the job itself says
        finally:
            if request is not None:
                remove_placement_group(request)
