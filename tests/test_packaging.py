"""What `pip install .` installs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from glsd.experiments import load_config
from ray_jobs.cli.settings import documented_yaml

ROOT = Path(__file__).parents[1]


@pytest.mark.slow  # the build backend comes from the package index
def test_an_installed_glsd_works_in_any_folder_with_all_presets(tmp_path):
    source, installed, elsewhere = tmp_path / "source", tmp_path / "installed", tmp_path / "elsewhere"
    for package in ("glsd", "ray_jobs"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--target", installed, source], check=True)
    elsewhere.mkdir()

    def printed(*command: str | Path) -> str:
        environment = os.environ | {"PYTHONPATH": str(installed)}
        return subprocess.check_output(command, cwd=elsewhere, env=environment, text=True)

    code = "import glsd, ray_jobs; print(glsd.__file__, ray_jobs.__file__, *glsd.presets())"
    files = [str(installed / package / "__init__.py") for package in ("glsd", "ray_jobs")]
    presets = sorted(path.stem for path in (ROOT / "glsd" / "presets").glob("*.yaml"))
    assert printed(sys.executable, "-c", code).split() == [*files, *presets]
    watching = sorted(path.name for path in (ROOT / "ray_jobs" / "watching").iterdir())
    assert sorted(path.name for path in (installed / "ray_jobs" / "watching").iterdir()) == watching
    assert printed(installed / "bin" / "glsd", "config", "demo") == f"{documented_yaml(load_config('demo'))}\n"
