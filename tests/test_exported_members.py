"""The two packages export names late, and the rooms within export none: their names come from their modules."""

import ast
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("glsd", "ray_jobs")


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_exports_sorted_names_that_hide_no_module(name: str) -> None:
    package = import_module(name)
    assert package.__all__ == sorted(package.__all__)
    assert all(getattr(package, member) is not None for member in package.__all__)
    assert not {module.name for module in pkgutil.iter_modules(package.__path__)} & set(package.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = package.no_such_name


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_imports_nothing_of_what_it_exports_until_it_is_used(name: str) -> None:
    code = f"import sys, {name}; print([module for module in sys.modules if module.startswith('{name}.')])"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "[]\n"


def test_the_init_of_a_room_is_a_docstring() -> None:
    rooms = [path for name in PACKAGES for path in (ROOT / name).rglob("__init__.py") if path.parent.name != name]
    assert len(rooms) > 6
    for path in rooms:
        (statement,) = ast.parse(path.read_text("utf-8")).body
        assert isinstance(statement, ast.Expr), path
