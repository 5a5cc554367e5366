"""The metrics of a training that Ray exports for Prometheus; `ray_jobs/watching/` has alarms and a dashboard."""

import threading
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

from ray.util.metrics import Counter, Gauge

GAUGES: Final = {
    "step": "Steps done",
    "total_steps": "Steps of the whole run",
    "loss": "Loss of the last logged step",
    "loss_global": "Loss of whole images",
    "loss_local": "Loss of locations",
    "matched": "Share of the locations that have a match",
    "knn": "k-NN accuracy of the teacher, a share",
    "collapsed": "1 while the teacher has collapsed, 0 while it has not",
    "feature_std": "Deviation of the features: 1 as isotropic vectors, 0 when all are equal",
    "effective_rank": "Effective rank of the features, as a share of the most possible",
    "k_star_entropy": "Entropy of the matched locations, a share: 0 is always the same one",
    "k_star_distinct": "Share of the locations to which any other is matched",
    "entropy_global": "Entropy of the global head, a share: 1 is uniform outputs, 0 is one prototype",
    "entropy_dense": "The same of the dense head",
    "information_global": "Information of the global head, a share: 0 when all images have the same output",
    "information_dense": "The same of the dense head and of locations",
    "images_per_s": "Source images trained on per second",
    "data_wait": "Share of time spent waiting for data",
    "workers": "Training workers",
    "gpu_bytes": "Most memory of a worker's tensors on its GPU up to now, of the worker with the most",
    "skipped": "Images that could not be decoded up to now",
    "units_per_s": "Units that the workers receive per second",
    "units_waiting": "Finished units that wait for the workers",
    "units_ahead": "Units that have been begun and that no worker has received",
    "coordinator_bytes": "Memory of the largest coordinator of a worker's stream",
    "object_store": "Share of the cluster's object stores in use",
    "cache_hit_rate": "Share of the images of object stores that a node's own disk had",
    "logged_time_seconds": "When the last step was logged, or this start began, in seconds since 1970",
    "checkpoint_time_seconds": "When the last checkpoint was saved, or this start began, in seconds since 1970",
}
"""Metrics that Ray exports for Prometheus as ray_glsd_step, ray_glsd_loss, ..., with the run and the trial as tags.

Ages follow from the times in Prometheus, where they also grow while nothing is logged.
"""
COUNTERS: Final = {"requests": "Requests to object stores"}
"""The same of metrics that count what was done since the last time: their sum is ray_glsd_requests_total."""
Event: TypeAlias = Literal["logged", "checkpoint"]

"""What a training tells the time of."""
_REPEAT_S: Final = 4.0
"""Ray drops a gauge that has not been set for 20 to 30 s, which may be less than the time between two logged steps."""


class Exporter:
    """Exports the metrics of one process until it is closed or the process ends.

    The names of the run and of the trial are tags, of which Ray takes only ASCII; outside of sweeps the trial has none.
    """

    def __init__(self, run: str, trial: str = "") -> None:
        self._tags = {"run": run, "trial": trial}
        names = tuple(self._tags)
        self._gauges = {key: Gauge(f"glsd_{key}", text, tag_keys=names) for key, text in GAUGES.items()}
        self._counters = {key: Counter(f"glsd_{key}", text, tag_keys=names) for key, text in COUNTERS.items()}
        self._values: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="glsd-exporter", daemon=True)

    def export(self, metrics: Mapping[str, float]) -> None:
        """Those of the metrics that are in the tables."""
        for key in metrics.keys() & self._counters.keys():
            if metrics[key]:
                self._counters[key].inc(metrics[key], self._tags)
        self._values = self._values | {key: metrics[key] for key in metrics.keys() & self._gauges.keys()}
        self._set()
        if not self._thread.is_alive() and not self._stop.is_set():
            self._thread.start()

    def close(self) -> None:
        """Have Ray drop the gauges in a while."""
        self._stop.set()

    def _repeat(self) -> None:
        while not self._stop.wait(_REPEAT_S):
            self._set()

    def _set(self) -> None:
        for key, value in self._values.items():
            self._gauges[key].set(value, self._tags)
