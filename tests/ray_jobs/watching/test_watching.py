"""The alarms and the dashboard name what glsd exports, and a Prometheus that has loaded them raises each alarm."""

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

import prometheus_client
import pytest
import yaml

from ray_jobs.cluster.exporting import COUNTERS, GAUGES, Event
from tests.documents import ROOT

RULES: Final = ROOT / "ray_jobs/watching/alerts.yml"
DASHBOARD: Final = ROOT / "ray_jobs/watching/dashboard.json"
EXPORTED: Final = {f"ray_glsd_{key}" for key in GAUGES} | {f"ray_glsd_{key}_total" for key in COUNTERS}
"""The names that Ray gives to the metrics, which test_exporting.py has seen."""
ALARMS: Final = {
    rule["alert"]: rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]
}
PANELS: Final = [panel for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"] if panel["type"] != "row"]
EXPRESSIONS: Final = [target["expr"] for panel in PANELS for target in panel["targets"]]
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="needs Prometheus, Debian's package prometheus",
)


def names(text: str) -> set[str]:
    return set(re.findall(r"\b(?:ray_)?glsd_\w+", text))


def test_alarms_ask_for_metrics_that_glsd_exports():
    assert names(" ".join(alarm["expr"] for alarm in ALARMS.values())) <= EXPORTED


def test_the_dashboard_shows_all_metrics_that_glsd_exports_and_no_others():
    assert names(DASHBOARD.read_text("utf-8")) == EXPORTED


def test_panels_of_the_dashboard_do_not_cover_each_other():
    places = [panel["gridPos"] for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"]]
    covered = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(covered) == len(set(covered))
    assert max(x for x, _ in covered) < 24


class History(NamedTuple):
    """What happens from minute to minute to a metric, and the alarm that comes of it."""

    metric: str
    values: str
    quiet: int
    """The last minute without the alarm."""
    raised: int
    """A minute with it."""
    summary: str


HISTORIES: Final = {
    "GlsdStalled": History(
        "ray_glsd_logged_time_seconds", "0+60x9 540x40", 24, 26, "rates/lr: no step has been logged for 17m 0s"
    ),
    "GlsdStarved": History(
        "ray_glsd_data_wait", "0.1x19 0.9x40", 28, 34, "rates/lr spends 90% of its time waiting for images"
    ),
    "GlsdCollapsed": History("ray_glsd_collapsed", "0x9 1x9", 9, 10, "rates/lr: the teacher has collapsed"),
    "GlsdCheckpointTooOld": History(
        "ray_glsd_checkpoint_time_seconds", "0+60x9 540x200", 129, 131, "rates/lr has saved no checkpoint for 2h 2m 0s"
    ),
}


def check_alarms(series: Mapping[str, str], expected: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Hold the alarms to what is expected of them, `{"alertname": ..., "eval_time": ..., "exp_alerts": ...}`."""
    labels = 'run="rates",trial="lr",WorkerId="a"'
    given = [{"series": f"{metric}{{{labels}}}", "values": values} for metric, values in series.items()]
    test = {"interval": "1m", "input_series": given, "alert_rule_test": expected}
    file = folder / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": [test]}), "utf-8")
    tested = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stderr


@needs_prometheus
@pytest.mark.parametrize("name", ALARMS)
def test_an_alarm_is_raised_when_its_time_has_come_and_names_the_run(name: str, tmp_path: Path) -> None:
    history, alarm = HISTORIES[name], ALARMS[name]
    annotations = alarm["annotations"] | {"summary": history.summary}
    raised = {"exp_labels": alarm["labels"] | {"run": "rates", "trial": "lr"}, "exp_annotations": annotations}
    check_alarms(
        {history.metric: history.values},
        [
            {"alertname": name, "eval_time": f"{history.quiet}m", "exp_alerts": []},
            {"alertname": name, "eval_time": f"{history.raised}m", "exp_alerts": [raised]},
        ],
        tmp_path,
    )


@needs_prometheus
def test_a_healthy_run_raises_no_alarm_and_neither_does_one_that_has_ended(tmp_path: Path) -> None:
    healthy = {
        "ray_glsd_logged_time_seconds": "0+60x300 stale",
        "ray_glsd_checkpoint_time_seconds": "0+60x300 stale",
        "ray_glsd_data_wait": "0.1x300 stale",
        "ray_glsd_collapsed": "0x300 stale",
    }
    times = ("1m", "200m", "305m", "600m")
    check_alarms(
        healthy,
        [{"alertname": name, "eval_time": time, "exp_alerts": []} for name in ALARMS for time in times],
        tmp_path,
    )


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[str]:
    """The address of a Prometheus with the alarms, of a run for which all are due."""
    registry = prometheus_client.CollectorRegistry()
    values = {"collapsed": 1.0, "data_wait": 0.9} | {
        f"{event}_time_seconds": time.time() - 1e5 for event in get_args(Event)
    }
    for key, text in GAUGES.items():
        gauge = prometheus_client.Gauge(f"ray_glsd_{key}", text, ("run", "trial"), registry=registry)
        gauge.labels("rates", "lr").set(values.get(key, 0.5))
    for key, text in COUNTERS.items():
        prometheus_client.Counter(f"ray_glsd_{key}", text, ("run", "trial"), registry=registry).labels("rates", "lr")
    exporter, _ = prometheus_client.start_http_server(0, "127.0.0.1", registry)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "scrape_configs": [
            {"job_name": "ray", "static_configs": [{"targets": [f"127.0.0.1:{exporter.server_port}"]}]},
        ],
        "rule_files": [str(RULES)],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            cwd=tmp_path, stdout=log, stderr=log,
        )  # fmt: skip
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()
    exporter.shutdown()
    exporter.server_close()


def asked(prometheus: str, what: str, **parameters: str) -> Any:
    with urllib.request.urlopen(f"{prometheus}/api/v1/{what}?{urllib.parse.urlencode(parameters)}") as answer:
        return json.load(answer)["data"]


@needs_prometheus
def test_prometheus_raises_each_alarm_and_answers_each_question_of_the_dashboard(prometheus: str) -> None:
    variables = {"$run": ".*", "$trial": ".*", "$__rate_interval": "1m"}
    unanswered = {re.sub(r"\$\w+", lambda found: variables[found[0]], expression) for expression in EXPRESSIONS}
    end, raised = time.monotonic() + 60, set[str]()
    while (unanswered or raised < ALARMS.keys()) and time.monotonic() < end:
        time.sleep(0.2)
        try:
            raised = {alert["labels"]["alertname"] for alert in asked(prometheus, "alerts")["alerts"]}
        except (ConnectionError, urllib.error.URLError):  # it has only begun
            continue
        unanswered -= {
            expression for expression in unanswered if asked(prometheus, "query", query=expression)["result"]
        }
    assert raised == ALARMS.keys()
    assert not unanswered
