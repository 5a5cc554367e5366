"""How many cores a process may use where control groups limit it; each test has groups of its own."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from ray_jobs.settings import num_cores

CORES = num_cores(Path("/nowhere"), Path("/nowhere"))
"""Those that this process may run on; a quota of 0.5 CPUs is fewer, rounded up, unless it is a single one."""

QUOTA, PERIOD = "cpu,cpuacct/pods/mine/cpu.cfs_quota_us", "cpu,cpuacct/pods/mine/cpu.cfs_period_us"
V1 = "9:name=systemd:/\n3:cpuset:/other\n2:cpu,cpuacct:/pods/mine\n0::/\n"


def cores(folder: Path, membership: str, files: Mapping[str, str]) -> int:
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (folder / "membership").write_text(membership)
    return num_cores(folder / "cgroup", folder / "membership")


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "50000 100000"}, 0.5),
        ("0::/\n", {"cpu.max": "max 100000"}, math.inf),
        ("0::/\n", {"cpu.max": "100000 100000"}, 1),
        ("0::/\n", {"cpu.max": "6400000 100000"}, 64),
        ("0::/pods/mine\n", {"pods/mine/cpu.max": "max 100000", "pods/cpu.max": "100000 100000"}, 1),
        ("0::/pods/mine\n", {"pods/mine/cpu.max": "100000 100000", "pods/other/cpu.max": "1000 100000"}, 1),
        ("0::/what/the/machine/calls/it\n", {"cpu.max": "100000 100000"}, 1),
        (V1, {QUOTA: "-1", PERIOD: "100000"}, math.inf),
        (V1, {QUOTA: "25000", PERIOD: "50000"}, 0.5),
        (V1, {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}, 1.5),
        (V1, {"cpuset/other/cpu.max": "1000 100000"}, math.inf),
        ("", {"cpu.max": "1000 100000"}, math.inf),
    ],
)  # fmt: skip
def test_a_quota_of_cpu_time_limits_the_cores(
    tmp_path: Path, membership: str, files: Mapping[str, str], quota: float
) -> None:
    assert cores(tmp_path, membership, files) == (CORES if quota >= CORES else math.ceil(quota))
