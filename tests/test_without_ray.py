"""glsd is a library of its own: it trains from a folder of images on a machine that has no Ray."""

import subprocess
import sys
from pathlib import Path

from tests.glsd.training.small import small_config
from tests.images import labelled_folder

ROOT = Path(__file__).parents[1]
TRAINING = """
import sys
from importlib.abc import MetaPathFinder


class NoRay(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "ray_jobs"):
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)


sys.meta_path.insert(0, NoRay())

import torch

from glsd.experiments import load_config
from glsd.data.index import build_index
from glsd.data.units import UnitSource, made_in_turn
from glsd.training.loop import steps
from glsd.training.state import initial_state

config, device = load_config(sys.argv[1]), torch.device("cpu")
source = UnitSource(config, build_index(sys.argv[2], config.data), None, "device")
state, units = initial_state(config, device), made_in_turn(source, range(source.num_units))
for reading in steps(state, units, config, source.order.steps_per_epoch, device):
    print(reading.metrics["step"], reading.metrics["loss"])
"""


def test_three_steps_from_a_folder_of_images_train_where_ray_cannot_be_imported(tmp_path: Path) -> None:
    photos = labelled_folder(tmp_path / "photos", 12)
    (tmp_path / "run.yaml").write_text(small_config(**{"optim.epochs": 1}).to_yaml(), "utf-8")
    command = [sys.executable, "-c", TRAINING, str(tmp_path / "run.yaml"), str(photos)]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    assert all(0 < float(line.split()[1]) < 20 for line in lines)
