"""What `glsd pretrain --dry_run` says and leaves alone."""

from pathlib import Path

import pytest
import ray

from ray_jobs.cli.main import main
from tests.glsd.storage.object_store import object_store
from tests.images import labelled_folder
from tests.ray_jobs.runs import brief_run


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command up to its data."""
    for name in ("AWS_EC2_METADATA_DISABLED", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "true")
    labelled_folder(tmp_path / "store/bucket/photos")
    (tmp_path / "run.yaml").write_text(brief_run().to_yaml(), "utf-8")
    return ["pretrain", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run"), "--dry_run", "--data"]


def test_a_dry_run_prints_steps_requests_and_their_price_and_starts_nothing(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    was_connected = ray.is_initialized()
    with object_store(tmp_path / "store") as address:
        data = f"s3://bucket/photos?endpoint_override={address}&scheme=http"
        main([*words, data])
        uncached = capsys.readouterr().out.splitlines()
        main([*words, data, "--cache_gib", "1"])
        cached = capsys.readouterr().out.splitlines()
    main([*words, str(tmp_path / "store/bucket/photos")])
    assert uncached == [
        "4 epochs of 5 steps of 8 images",
        "reading s3://: 80 requests per epoch, 320 in 4 epochs, about $0.00 at $0.40 per million",
        "  --cache_gib 1 keeps all images on each node's disk: 80 requests of each node in all, about $0.00",
        "  in tars (glsd pack): 160 requests in 4 epochs, about $0.00",
    ]
    assert cached[1].startswith("reading s3://: 80 requests in the first epoch of a node, 0 in each later one, 80 in 4")
    assert capsys.readouterr().out.splitlines() == [uncached[0], "no image is in an object store"]
    assert not (tmp_path / "run").exists()
    assert ray.is_initialized() == was_connected


def test_a_dry_run_refuses_what_a_run_would(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = str(tmp_path / "store/bucket/photos")
    with pytest.raises(SystemExit):
        main([*words, photos, "--optim.batch_size", "48", "--data.unit_size", "8"])
    assert "40 images do not fill a batch of 48" in capsys.readouterr().err
