import time
import urllib.request

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from ray_jobs.cluster.exporting import COUNTERS, GAUGES, Exporter

KEPT_S = 35
"""Longer than Ray keeps a gauge of which its process has told it once."""


class Training:
    """One that exports all of its metrics once, and then hangs."""

    def __init__(self) -> None:
        Exporter("rates", "lr").export(dict.fromkeys(GAUGES | COUNTERS, 7.0))


def exported() -> dict[str, float]:
    (node,) = ray.nodes()
    with urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples]
    tags = {"run": "rates", "trial": "lr"}
    return {sample.name: sample.value for sample in samples if tags.items() <= sample.labels.items()}


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_ray_exports_all_metrics_with_the_names_of_run_and_trial_as_long_as_the_training_lives() -> None:
    expected = {f"ray_glsd_{key}" for key in GAUGES} | {f"ray_glsd_{key}_total" for key in COUNTERS}
    begun, training = time.monotonic(), ray.remote(num_cpus=0)(Training).remote()
    while exported().keys() != expected and time.monotonic() < begun + 60:
        time.sleep(0.5)
    time.sleep(KEPT_S)
    assert exported() == dict.fromkeys(expected, 7.0)
    ray.kill(training)
