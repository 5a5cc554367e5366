import glsd.augment


def test_every_public_name_is_exported_once_and_sorted() -> None:
    names = [name for name in vars(glsd.augment) if not name.startswith("_")]
    modules = {"distributions", "geometric", "multicrop", "photometric", "vector"} - {"multicrop"}
    assert sorted(set(names) - modules) == sorted(glsd.augment.__all__)
    assert glsd.augment.__all__ == sorted(glsd.augment.__all__)
