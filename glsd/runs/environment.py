"""What a result may depend on besides settings and data."""

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import glsd.config
from glsd.runs.records import Environment

PACKAGES = (
    *("glsd", "ray", "pyarrow", "torch", "torchvision", "timm"),
    *("numpy", "pillow", "simplejpeg", "opencv-python-headless"),
)


def environment() -> Environment:
    """Versions, platform and commit. No variables, no names."""
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        packages={package: _version(package) for package in PACKAGES},
        git_commit=_git_commit(),
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None  # a checkout that is not installed, or a package that another distribution provides


def _git_commit() -> str | None:
    root = Path(glsd.config.__file__).parents[1]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None  # an installed package
    answer = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None
