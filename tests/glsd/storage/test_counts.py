"""Requests to object stores are counted as their servers see them."""

from pathlib import Path

import pytest

from glsd.storage.counts import counted
from glsd.storage.files import read
from tests.glsd.storage.google_store import REQUESTS, google_store
from tests.glsd.storage.object_store import object_store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A bucket with an object."""
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket/0.tar").write_bytes(bytes(5000))
    return tmp_path


def test_whole_files_and_ranges_of_s3_are_counted_with_the_looks_at_their_size(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_EC2_METADATA_DISABLED", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "true")
    asked, before = list[str](), counted()
    with object_store(root, asked) as address:
        uri = f"s3://bucket/0.tar?endpoint_override={address}&scheme=http"
        for offset in (0, 100, 4000):
            read(uri, offset, 90)
        read(uri)
    assert (counted() - before)["requests"] == len(asked) == 6


def test_whole_files_and_ranges_of_google_are_counted(root: Path) -> None:
    before = counted()
    with google_store(root) as address:
        uri = f"gs://anonymous@bucket/0.tar?endpoint_override={address}&scheme=http&retry_limit_seconds=1"
        read(uri)
        for offset in (0, 100, 4000):
            read(uri, offset, 90)
    assert (counted() - before)["requests"] == len((root / REQUESTS).read_text().splitlines()) == 6


def test_local_files_are_no_requests(root: Path) -> None:
    before = counted()
    read(str(root / "bucket/0.tar"))
    assert not counted() - before
