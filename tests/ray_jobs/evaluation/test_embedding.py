import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from glsd.config import Config
from glsd.data.images import decode
from glsd.data.index import build_index
from glsd.encoder.encoder import load_encoder, untrained_encoder
from glsd.weights.timm import export_backbone
from ray_jobs.evaluation.embedding import EmbedReport, embed
from ray_jobs.evaluation.options import EmbedOptions
from tests.images import labelled_folder
from tests.ray_jobs.pretraining.test_kill import Start

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("cluster")]

NUM_IMAGES = 300
NUM_CORRUPT = 2


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_folder(tmp_path_factory.mktemp("embedding") / "photos", NUM_IMAGES, NUM_CORRUPT)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = Config().with_overrides(
        {
            "model.backbone": "test_resnet",
            "model.drop_path": 0.0,
            "evaluation.resize": 144,
            "evaluation.crop": 128,
        }
    )
    return str(export_backbone(untrained_encoder(config), tmp_path_factory.mktemp("model") / "backbone").path)


def test_a_killed_embedding_goes_on_and_writes_the_same_file_which_is_never_overwritten(
    photos: Path, backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, out = tmp_path / "cache", tmp_path / "new" / "features.parquet"
    monkeypatch.setenv("GLSD_CACHE", str(cache))

    def lines() -> list[str]:
        return [text for path in cache.glob("features-*/journal.jsonl") for text in path.read_text().splitlines()]

    log = tmp_path / "log"
    given = f"{backbone!r}, {str(photos)!r}, {str(out)!r}, EmbedOptions(dense=True)"
    call = f"from ray_jobs import EmbedOptions, embed; embed({given})"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", call],
            stdout=stream,
            stderr=stream,
            env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            start_new_session=True,
        )
    start = Start(process, log)
    try:
        start.wait_until(lines)
        start.kill_driver()
    finally:
        start.kill_all()
    before = lines()
    assert 0 < sum(len(json.loads(line)) for line in before) < NUM_IMAGES
    assert not out.exists()

    report = embed(backbone, str(photos), out, EmbedOptions(dense=True))
    assert lines()[: len(before)] == before
    counts = Counter(image_id for line in lines() for image_id, _ in json.loads(line))
    assert counts == dict.fromkeys(range(NUM_IMAGES), 1)
    assert list(out.parent.iterdir()) == [out]

    encoder = load_encoder(backbone)
    index = build_index(photos, encoder.config.data)
    assert index.labels is not None
    assert index.classes is not None
    table = pq.read_table(out)
    image_ids = [k for k in range(NUM_IMAGES) if Path(index.uri(k)).stem not in ("000", "001")]
    assert report == EmbedReport(str(out), len(image_ids), NUM_CORRUPT, encoder.backbone.dim)
    assert table["image_id"].to_pylist() == image_ids
    assert table["uri"].to_pylist() == [index.uri(k) for k in image_ids]
    assert table["label"].to_pylist() == [Path(index.uri(k)).parent.name for k in image_ids]
    facts = json.loads(table.schema.metadata[b"glsd"])
    crops = [encoder.preprocess(decode(index.read(k), 10**6)) for k in image_ids]
    with torch.no_grad():
        z_bar, z = encoder(encoder.normalize(torch.from_numpy(np.stack(crops))))
    assert facts["shape"] == list(z.shape[1:])
    for name, expected in (("z_bar", z_bar), ("z", z.flatten(1))):
        column = table[name].combine_chunks()
        assert pa.types.is_fixed_size_list(column.type)
        found = column.flatten().to_numpy().reshape(len(image_ids), -1)
        torch.testing.assert_close(torch.from_numpy(found.copy()), expected, atol=1e-5, rtol=1e-4)

    content, changed = out.read_bytes(), out.stat().st_mtime_ns
    assert embed(backbone, str(photos), out, EmbedOptions(dense=True)) == report
    with pytest.raises(
        ValueError, match=r"features\.parquet is of another shape, and is not overwritten; name another"
    ):
        embed(backbone, str(photos), out)
    assert (out.read_bytes(), out.stat().st_mtime_ns) == (content, changed)


def test_images_without_labels_have_null_for_one(backbone: str, tmp_path: Path) -> None:
    folder = labelled_folder(tmp_path / "photos", 8) / "noise"
    assert embed(backbone, str(folder), tmp_path / "features.parquet").num_images == 2
    table = pq.read_table(tmp_path / "features.parquet")
    assert table["label"].to_pylist() == [None, None]
    assert table.column_names == ["image_id", "uri", "label", "z_bar"]


def test_what_is_not_a_file_of_ours_is_left_as_it_is(photos: Path, backbone: str, tmp_path: Path) -> None:
    notes, table = tmp_path / "notes.txt", tmp_path / "table.parquet"
    notes.write_text("notes")
    pq.write_table(pa.table({"x": [1]}), table)
    with pytest.raises(ValueError, match=r"notes\.txt is not a Parquet file, and is not overwritten; name another"):
        embed(backbone, str(photos), notes)
    with pytest.raises(ValueError, match=r"table\.parquet is not a file of glsd embed, and is not overwritten"):
        embed(backbone, str(photos), table)
    with pytest.raises(ValueError, match="photos is not a Parquet file"):
        embed(backbone, str(photos), photos)
    with pytest.raises(ValueError, match=r"features\.csv is written as Parquet; let its name end in \.parquet"):
        embed(backbone, str(photos), tmp_path / "features.csv")
    assert notes.read_text() == "notes"


def test_a_file_within_the_images_is_refused_and_one_in_the_root_folder_is_not(
    photos: Path, backbone: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"photos/features\.parquet lies within .*photos"):
        embed(backbone, str(photos), photos / "features.parquet")
    assert not (photos / "features.parquet").exists()
    with pytest.raises(ValueError, match=r"^--data: .*nowhere does not exist"):
        embed(backbone, str(tmp_path / "nowhere"), "/features.parquet")
