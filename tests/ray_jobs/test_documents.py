"""The documents' commands that need Ray, one after the other on a few images, and the documents' Python."""

from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from ray_jobs.cli.main import main
from tests.documents import ON_RAY, arguments, blocks
from tests.images import labelled_folder, picture

LONG_TRAINING, SHORT_TRAINING = (
    'load_config("small_data", {"optim.epochs": 100})',
    'load_config("runs/photos/config.yaml")',
)
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the commands name."""
    for name, num_images in (("photos", 48), ("labelled/train", 48), ("labelled/val", 8)):
        labelled_folder(tmp_path / name, num_images)
    dino = timm.create_model("vit_small_patch16_224", num_classes=0)
    torch.save(dino.state_dict(), tmp_path / "dino_deitsmall16_pretrain.pth")
    monkeypatch.setenv("GLSD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_documented_commands_run_and_then_the_documented_code(cluster, folder):
    for command, appended in ON_RAY.items():
        main(arguments(command, appended))
    for name in ("runs/photos/report.html", "runs/photos/labelled/report.html", "features.parquet"):
        assert (folder / name).stat().st_size > 0, name
    for name in ("runs/photos/backbone", "exported", "backbones/dino", "runs/further/backbone"):
        assert (folder / name / "model.safetensors").stat().st_size > 0, name
    assert len(list((folder / "shards").glob("*.tar"))) == 1
    image = Image.fromarray(picture("rings", 0))
    for code in blocks("python"):
        if ">>>" not in code:  # make check runs those as doctests
            exec(code.replace(LONG_TRAINING, SHORT_TRAINING), {"image": image})
