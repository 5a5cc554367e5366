"""Options that take a file or folder take a URI of either store; what they write is what they write on a disk."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from glsd.config import Config
from glsd.data.index import build_index
from glsd.encoder.encoder import load_encoder, model_digest, untrained_encoder
from glsd.weights.timm import export_backbone
from ray_jobs.cli.main import main
from tests.glsd.data.encoding import write_jpegs
from tests.glsd.reporting.test_report import a_finished_run
from tests.glsd.storage.google_store import google_store
from tests.glsd.storage.object_store import object_store

Uri = Callable[[str], str]


@pytest.fixture(params=["s3", "gs"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Uri]:
    """Names an object, which lies in `tmp_path / "bucket"`."""
    (tmp_path / "bucket").mkdir()
    for name in ("AWS_EC2_METADATA_DISABLED", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "true")
    server = object_store if request.param == "s3" else google_store
    place = "s3://bucket" if request.param == "s3" else "gs://anonymous@bucket"
    with server(tmp_path) as address:
        yield lambda name: f"{place}/{name}?endpoint_override={address}&scheme=http"


def test_a_preview_is_read_from_and_written_to_a_store(uri: Uri, tmp_path: Path) -> None:
    write_jpegs(tmp_path / "bucket", "photo.jpg")
    main(["preview", uri("photo.jpg"), "--preset", "demo", "--out", uri("drawn/preview.png")])
    main(["preview", str(tmp_path / "bucket/photo.jpg"), "--preset", "demo", "--out", str(tmp_path / "preview.png")])
    assert (tmp_path / "bucket/drawn/preview.png").read_bytes() == (tmp_path / "preview.png").read_bytes()


def test_a_page_is_written_to_a_store(uri: Uri, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_finished_run(tmp_path / "run").out
    main(["report", run, "--out", uri("page.html")])
    assert capsys.readouterr().out.strip() == uri("page.html")
    main(["report", run])
    assert (tmp_path / "bucket/page.html").read_bytes() == (tmp_path / "run/report.html").read_bytes()


def test_a_backbone_is_exported_and_converted_on_a_store(
    uri: Uri, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = untrained_encoder(Config().with_overrides({"model.backbone": "test_vit", "model.drop_path": 0.0}))
    export_backbone(encoder, tmp_path / "local")
    for replaced in (False, True):
        main(["export", str(tmp_path / "local"), "--out", uri("models/exported")])
        said = capsys.readouterr().out
        assert said.startswith(uri("models/exported"))
        assert ("the earlier export there was replaced" in said) == replaced
    assert f"# {uri('models/exported')} copied to exported\n" in said
    assert str(tmp_path) not in said
    assert model_digest(load_encoder(uri("models/exported"))) == model_digest(encoder)

    weights = {f"model.{key}": value for key, value in encoder.backbone.model.state_dict().items()}
    torch.save(weights, tmp_path / "bucket/weights.pth")
    main(["convert", uri("weights.pth"), uri("models/converted"), "--backbone", "test_vit", "--prefix", "model."])
    converted = load_encoder(uri("models/converted")).backbone.state_dict()
    assert all(torch.equal(value, converted[key]) for key, value in encoder.backbone.state_dict().items())

    (tmp_path / "bucket/mine").mkdir()
    (tmp_path / "bucket/mine/thesis.tex").write_text("years of work")
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "local"), "--out", uri("mine")])
    assert "is not an earlier export and will not be replaced" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "bucket/mine").iterdir()] == ["thesis.tex"]


@pytest.mark.ray
def test_representations_are_written_to_a_store(uri: Uri, cluster: None, tmp_path: Path) -> None:
    write_jpegs(tmp_path / "bucket", *(f"photos/{number}.jpg" for number in range(9)))
    overrides = {"model.backbone": "test_vit", "evaluation.resize": 64, "evaluation.crop": 64}
    backbone = str(export_backbone(untrained_encoder(Config().with_overrides(overrides)), tmp_path / "backbone").path)
    for _ in range(2):  # the second finds a complete file
        main(["embed", backbone, "--data", uri("photos"), "--out", uri("features/all.parquet")])
    main(["embed", backbone, "--data", str(tmp_path / "bucket/photos"), "--out", str(tmp_path / "local.parquet")])
    found, local = (
        pq.read_table(path) for path in (tmp_path / "bucket/features/all.parquet", tmp_path / "local.parquet")
    )
    assert found["z_bar"].equals(local["z_bar"])


def test_the_cache_folder_is_on_a_disk(uri: Uri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLSD_CACHE", uri("cache"))
    with pytest.raises(ValueError, match="is a URI; set GLSD_CACHE to a folder on this machine's disk"):
        build_index(tmp_path, Config().data)
