from pathlib import Path

import pytest

from glsd.data.filesystems import replace_file, replacing


def test_a_file_is_replaced_when_its_content_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "notes ä.txt"
    replace_file(path, b"first")
    with replacing(path) as stream:
        stream.write(b"sec")
        assert path.read_bytes() == b"first"
        stream.write(b"ond")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_half_way_leaves_the_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    replace_file(path, b"first")

    def fail() -> None:
        with replacing(path) as stream:
            stream.write(b"sec")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]
