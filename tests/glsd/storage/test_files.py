from datetime import timedelta
from pathlib import Path

import pytest

from glsd.storage.files import read, read_file
from glsd.storage.replacing import replace_file, replacing
from glsd.storage.uris import resolved
from tests.glsd.storage.google_store import REQUESTS, google_store
from tests.glsd.storage.object_store import object_store


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


def test_what_is_written_to_google_cloud_storage_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    with google_store(tmp_path) as address:
        options = f"?endpoint_override={address}&scheme=http&retry_limit_seconds=1"
        filesystem, folder = resolved(f"gs://anonymous@bucket/my run{options}")
        filesystem.create_dir(folder)
        for name, data in {"ö 100%": b"first", "empty": b"", "large": bytes(20 << 20)}.items():
            with filesystem.open_output_stream(f"{folder}/{name}") as stream:
                stream.write(data)
            assert (tmp_path / "bucket/my run" / name).read_bytes() == data
        assert read(f"gs://anonymous@bucket/my run/ö 100%25{options}") == (b"first", 5)
        filesystem.delete_dir(folder)
    assert not any((tmp_path / "bucket/my run").iterdir())


def test_a_whole_file_of_google_cloud_storage_is_one_request(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket/a.jpg").write_bytes(b"image" * 300_000)
    with google_store(tmp_path) as address:
        uri = f"gs://anonymous@bucket/a.jpg?endpoint_override={address}&scheme=http&retry_limit_seconds=1"
        assert read(uri) == (b"image" * 300_000, 1_500_000)
        assert read_file(*resolved(uri)) == b"image" * 300_000
    asked = "GET /storage/v1/b/bucket/o/a.jpg?alt=media HTTP/1.1"  # with no moment between two for it to be replaced in
    assert (tmp_path / REQUESTS).read_text().splitlines() == [asked] * 2


def test_a_shard_of_an_object_store_is_asked_for_its_size_once_and_then_for_each_image_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_EC2_METADATA_DISABLED", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "true")
    content = bytes(range(256)) * 10
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket/0.tar").write_bytes(content)
    asked: list[str] = []
    with object_store(tmp_path, asked) as address:
        uri = f"s3://bucket/0.tar?endpoint_override={address}&scheme=http"
        for offset in range(0, 2000, 100):
            assert read(uri, offset, 90) == (content[offset : offset + 90], len(content))
    assert sorted(asked) == ["GET"] * 20 + ["HEAD"]


def test_google_cloud_storage_is_not_tried_for_minutes_unless_a_uri_says_so() -> None:
    for options, seconds in {"": 30, "?scheme=https": 30, "?retry_limit_seconds=900": 900}.items():
        filesystem, _ = resolved(f"gs://anonymous@bucket/photos{options}")
        assert filesystem.__reduce__()[1][0]["retry_time_limit"] == timedelta(seconds=seconds)


def test_google_cloud_storage_is_insisted_upon_by_its_client_alone(tmp_path: Path) -> None:
    with google_store(tmp_path) as address:
        uri = f"gs://anonymous@bucket/a.jpg?endpoint_override={address}&scheme=http&retry_limit_seconds=1"
    with pytest.raises(OSError, match=r"a\.jpg.* failed: "):  # the server is gone
        read(uri)
