from types import ModuleType

import glsd.augment


def test_every_public_name_is_exported_and_sorted() -> None:
    public = {name: member for name, member in vars(glsd.augment).items() if not name.startswith("_")}
    names = [name for name, member in public.items() if not isinstance(member, ModuleType) and name != "jaxtyping"]
    assert glsd.augment.__all__ == sorted(names)


def test_no_function_hides_a_submodule() -> None:
    submodules = {"distributions", "geometric", "photometric", "vector", "views"}
    assert not submodules & set(glsd.augment.__all__)
