"""The benchmark of a GPU, on a CPU with tiny sizes: that it measures all of its parts and keeps to its budget."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def measured(tmp_path: Path, seconds: int) -> dict[str, Any]:
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--seconds", str(seconds)]
    subprocess.run(
        [*command, "--json", str(tmp_path / "gpu.json")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )
    found: dict[str, Any] = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    return found


def test_every_part_is_measured_and_the_phases_of_a_step_make_up_the_whole(tmp_path: Path) -> None:
    found = measured(tmp_path, seconds=1000)
    assert found["left_out"] == []
    rows = {row["what"]: row for row in found["rows"]}
    steps = {what: row for what, row in rows.items() if what.startswith("step, ")}
    assert len(steps) == 5, "three settings, and two other backbones"
    for row in steps.values():
        assert row["images_per_s"] > 0
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert min(row["shares"][phase] for phase in ("teacher forward", "student forward", "loss", "backward")) > 0
    assert {what.partition(",")[0] for what in rows if what not in steps} == {
        "heads and loss",
        "photometrics",
        "hidden waits of a step",
        "k-NN over 1",
    }


def test_what_the_budget_does_not_suffice_for_is_left_out_by_name(tmp_path: Path) -> None:
    found = measured(tmp_path, seconds=0)
    assert found["rows"] == []
    assert len(found["left_out"]) == 9
    assert found["left_out"][0].startswith("step, test_convnext, vanilla, 2 images: ")
