"""Every room's window shows what is in it: sorted, complete, and nothing that hides a module."""

import ast
import pkgutil
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

ROOMS = [f"glsd.{room}" for room in ("augment", "data", "losses", "models")]
LAZY = ["glsd", "glsd.evaluation", "glsd.reporting", "glsd.training", "ray_jobs"]


def reexported(package: ModuleType) -> dict[str, str]:
    """The names that a package's `__init__.py` imports as themselves, and the modules they come from."""
    assert package.__file__ is not None
    statements = [
        node for node in ast.walk(ast.parse(Path(package.__file__).read_text())) if isinstance(node, ast.ImportFrom)
    ]
    return {alias.name: str(node.module) for node in statements for alias in node.names if alias.asname == alias.name}


def test_every_room_is_tested() -> None:
    found = [module.name for module in pkgutil.iter_modules(import_module("glsd").__path__, "glsd.") if module.ispkg]
    assert sorted(found) == sorted([*ROOMS, "glsd.evaluation", "glsd.reporting", "glsd.training"])


@pytest.mark.parametrize("name", ROOMS)
def test_every_public_name_is_exported_and_sorted(name: str) -> None:
    room = import_module(name)
    public = {key: member for key, member in vars(room).items() if not key.startswith("_") and key != "jaxtyping"}
    names = [key for key, member in public.items() if not isinstance(member, ModuleType)]
    assert room.__all__ == sorted(names) == sorted(reexported(room))


@pytest.mark.parametrize("name", LAZY)
def test_names_that_are_imported_late_are_those_that_type_checkers_see(name: str) -> None:
    package = import_module(name)
    assert package.__all__ == sorted(reexported(package))
    for member, module in reexported(package).items():
        assert getattr(package, member) is getattr(import_module(module), member)
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = package.no_such_name


@pytest.mark.parametrize("name", [*ROOMS, *LAZY])
def test_no_public_name_hides_a_submodule(name: str) -> None:
    package = import_module(name)
    assert not {module.name for module in pkgutil.iter_modules(package.__path__)} & set(package.__all__)
