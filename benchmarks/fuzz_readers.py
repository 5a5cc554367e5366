"""The readers that `benchmarks.fuzz` feeds: whole files of each kind, and what reads one.

Between mutation and reading, checksums are mended (`mend`), so that what lies behind them is reached.
"""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from PIL import Image

from glsd.config import Config, DataConfig
from glsd.data.images import decode, fitting_value_range, header_size
from glsd.data.index import Index, build_index
from glsd.data.labels import CLASS_NAMES
from glsd.data.scenes import read_scenes
from glsd.data.sources import PACK_PLAN
from glsd.encoder.encoder import load_encoder, untrained_encoder
from glsd.experiments import load_config
from glsd.runs import records
from glsd.runs.checkpoints import save_checkpoint
from glsd.runs.directory import RunDirectory
from glsd.runs.log import METRICS, read_metrics
from glsd.runs.records import read_record
from glsd.weights.files import read_foreign
from glsd.weights.timm import export_backbone
from ray_jobs.evaluation.store import Rows, Store
from ray_jobs.sweeps.grids import load_space

LIMITS = DataConfig(max_pixels=10**6)
_SMALL = Config().with_overrides({"model.backbone": "test_vit", "model.drop_path": 0.0})


class Reader(NamedTuple):
    """A kind of file."""

    files: list[bytes]
    """Whole ones, the first of which are read as they are."""
    read: Callable[[Path], object]
    """Reads the file at a path; there is nothing else in its folder."""
    name: str
    """Of the file."""
    words: tuple[bytes, ...] = ()
    """What may be put anywhere."""
    mend: Callable[[bytes], bytes] = bytes
    is_named: bool = True
    """Whether messages name the file; else its caller does."""


@cache
def readers() -> dict[str, Reader]:
    """All readers by the names that the table has."""
    return {**_of_images(), **_of_data(), **_of_settings(), **_of_runs()}


def _pixels(height: int = 24, width: int = 33) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 7, y * 9, 255 - x - y], -1).astype(np.uint8)


def _encoded(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(_pixels()).convert(mode).save(file, kind, **options)
    return file.getvalue()


def _read_image(path: Path) -> None:
    data = path.read_bytes()
    header_size(data)
    fitting_value_range([data], LIMITS.max_pixels)
    pixels = decode(data, LIMITS.max_pixels, (0.0, 65535.0))
    assert pixels.dtype == np.uint8, pixels.dtype
    assert pixels.ndim == pixels.shape[2] == 3, pixels.shape


def _of_images() -> dict[str, Reader]:
    deep = _pixels().astype(np.uint16) * 257
    turned = Image.Exif()
    turned[274] = 6
    jpegs = [_encoded("JPEG"), _encoded("JPEG", progressive=True), _encoded("JPEG", "L", exif=turned)]
    pngs = [_encoded("PNG"), _encoded("PNG", "P"), _encoded("PNG", "RGBA", exif=turned), _encoded("PNG", "1")]
    tiffs = [_encoded("TIFF", mode, compression=how) for mode in ("RGB", "L", "CMYK") for how in (None, "tiff_lzw")]
    deep_tiffs = [
        imagecodecs.tiff_encode(values, compression=how, **apart)
        for values in (deep, deep.astype(np.float32), deep[..., 0].astype(np.int32))
        for how in (None, "deflate", "lzw")
        for apart in ({}, {"tile": (16, 16)})
    ]
    gifs = [_encoded("GIF", "P"), _encoded("GIF", "L", save_all=True, append_images=[Image.new("L", (33, 24))])]
    avifs, webps = [_encoded("AVIF")], [_encoded("WEBP"), _encoded("WEBP", "RGBA", lossless=True)]
    files = {
        "JPEG": [*jpegs, _encoded("JPEG", "CMYK")],
        "PNG": [*pngs, _claiming(60_000, 60_000, 8)],
        "PNG of 16 bits": [imagecodecs.png_encode(deep), _claiming(60_000, 60_000, 16)],
        "WebP": webps,
        "AVIF": avifs,
        "BMP": [_encoded("BMP"), _encoded("BMP", "P"), _encoded("BMP", "1")],
        "GIF": gifs,
        "TIFF": tiffs,
        "TIFF of more bits": deep_tiffs,
    }
    mends = {"PNG": _with_crc, "PNG of 16 bits": _with_crc}
    words = tuple(
        struct.pack(order + kind, value)
        for order in "<>"
        for kind, value in (("H", 0xFFFF), ("I", 0xFFFFFFFF), ("I", 60_000), ("I", 1 << 31), ("H", 60_000))
    )
    return {
        kind: Reader(some, _read_image, "image", words, mends.get(kind, bytes), False) for kind, some in files.items()
    }


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _claiming(width: int, height: int, bits: int) -> bytes:
    """A PNG of a few bytes with so many pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(1000)))


def _with_crc(data: bytes) -> bytes:
    chunks, position = [data[:8]], 8
    while position + 12 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        if position + 12 + size > len(data):
            break
        chunks.append(_chunk(data[position + 4 : position + 8], data[position + 8 : position + 8 + size]))
        position += 12 + size
    return b"".join(chunks) + data[position:]


def _read_data(path: Path) -> None:
    _read_images(path, path.parent.parent / "cache")


def _read_images(source: Path, cache_dir: Path) -> None:
    index = build_index(source, LIMITS, cache_dir)
    for image_id in range(min(len(index), 8)):
        index.uri(image_id)
        index.read(image_id)


def _read_beside_tar(path: Path) -> None:
    (path.parent / "some.tar").write_bytes(_tar())
    _read_images(path.parent, path.parent.parent / "cache")


def _read_index(path: Path) -> None:
    index = Index.open(path)
    assert index.digest
    assert index.key
    for facts in (index.classes, index.labels, index.lengths, index.class_ids, index.sources, index.packed):
        repr(facts)
    for image_id in range(min(len(index), 8)):
        index.place(image_id)


@cache
def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number in range(3):
            for suffix, data in ((".jpg", _encoded("JPEG")), (".cls", b"%d" % number)):
                _add(tar, f"{number:03d}{suffix}", data)
    return file.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _claiming_tar(name: str) -> bytes:
    """A tar whose only member has 8 GiB, it says."""
    member = tarfile.TarInfo(name)
    member.size = 8 << 30
    return member.tobuf() + bytes(10240)


def _with_sums(data: bytes) -> bytes:
    """A tar with the checksums of the headers that are where they were."""
    blocks = bytearray(data)
    for start in range(0, len(blocks) - 511, 512):
        if blocks[start + 257 : start + 262] == b"ustar":
            blocks[start + 148 : start + 156] = b" " * 8
            blocks[start + 148 : start + 156] = b"%06o\0 " % sum(blocks[start : start + 512])
    return bytes(blocks)


def _parquet(table: pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def _index() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "some.tar").write_bytes(_tar())
        return build_index(Path(folder) / "some.tar", LIMITS, cache_dir=folder).path.read_bytes()


def _of_data() -> dict[str, Reader]:
    images = [_encoded("JPEG"), _encoded("PNG"), _encoded("GIF", "P")]
    rows = pa.table({"image": images, "label": [0, 1, 1]})
    structs = pa.table({"image": [{"bytes": data, "path": "a"} for data in images], "label": ["a", "b", "b"]})
    bomb = pa.table({"image": [bytes(1 << 20)] * 8, "label": list(range(8))})
    parquet = [
        *(_parquet(table, compression=how) for table in (rows, structs) for how in ("none", "zstd")),
        _parquet(rows, row_group_size=1, use_dictionary=False),
        _parquet(bomb, compression="zstd"),
    ]
    # Lists of themselves, so that their files exist.
    lists = pa.table({"path": ["list.parquet"] * 2, "offset": [0, 9], "length": [9, 9], "label": ["a", "b"]})
    csvs = [b"path,label\ninput.csv,1\n", b"path,offset,length,file_size\ninput.csv,0,9,63\ninput.csv,9,9,63\n"]
    numbers = (b"99999999999999999999", b"-1", b"1e9", b"9223372036854775807", b"0")
    names = (b"\0", b"://", b"s3x://", b"?", b"%", b"../", b'"', b"{0..9}", b"\xff\xfe", b"\r", "\u2028".encode())
    scene = b'image_a,image_b,homography\nscene.csv,scene.csv,"1 0 0 0 1 0 0 0 1"\n'
    classes = [b'["a", "b", "c"]', b'[{"label": 0, "name": "a"}]']
    packs = {"shards": [["some.tar", 0, 3, len(_tar())]], "digest": "0", "images": 3}
    tars = [_tar(), _claiming_tar("a.jpg"), _claiming_tar("a.cls")]
    packers: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
        "gz": (gzip.compress, gzip.decompress),
        "bz2": (bz2.compress, bz2.decompress),
        "xz": (lzma.compress, lzma.decompress),
    }
    packed = {
        f"tar.{kind}": Reader([pack(tar) for tar in tars], _read_data, f"input.tar.{kind}", mend=pack_again)
        for kind, (pack, unpack) in packers.items()
        for pack_again in [partial(_packed_again, pack, unpack)]
    }
    return {
        "tar": Reader(
            tars, _read_data, "input.tar", (b"ustar", b"00000000000", b"77777777777", b"././@LongLink"), _with_sums
        ),
        **packed,
        "Parquet file of images": Reader(parquet, _read_data, "input.parquet"),
        "Parquet list": Reader([_parquet(lists)], _read_data, "list.parquet"),
        "CSV list": Reader(csvs, _read_data, "input.csv", (*numbers, *names, b",", b"\n", b"path", b"image_column")),
        "text list": Reader([b"input.txt\n"], _read_data, "input.txt", names),
        "scenes": Reader([scene], read_scenes, "scene.csv", (*numbers, *names, b"nan", b"inf", b" ")),
        "class names": Reader(classes, _read_beside_tar, CLASS_NAMES, _JSON),
        "plan of a pack": Reader([json.dumps(packs).encode()], _read_beside_tar, PACK_PLAN, _JSON),
        "index": Reader([_index()], _read_index, "index.arrow"),
    }


def _packed_again(pack: Callable[[bytes], bytes], unpack: Callable[[bytes], bytes], data: bytes) -> bytes:
    """A compressed tar that is broken within, where what is within can be read."""
    try:
        tar = bytearray(unpack(data))
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
        return data
    if tar:
        tar[zlib.crc32(data) % min(len(tar), 512)] ^= 1 + data[-1] % 255
    return pack(_with_sums(bytes(tar)))


_YAML = (b"&a ", b"*a", b"<<: ", b"!!python/object/apply:os.abort []", b"[" * 5000, b"{", b"9" * 5000, b".inf", b"~")
_JSON = (b"[" * 100_000, b'{"a":' * 100_000, b"NaN", b"1e999", b"null", b"9" * 5000, b"[]", b"{}", b'""', b"\\ud800")


def _laughs(key: str) -> bytes:
    """YAML of a few lines that stands for a billion values."""
    lines = ["a0: &a0 [lol]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)), f"{key}: *a9"]
    return "\n".join(lines).encode()


def _of_settings() -> dict[str, Reader]:
    small = b"preset: small_data\noptim:\n  epochs: 30\naugment.local_sizes: [96, 64]\n"
    grid = b"optim.base_lr: [1e-4, 5e-4]\nseed: [0, 1]\nmodel.drop_path: {uniform: [0.0, 0.2]}\ntogether: []\n"
    keys = tuple(key.encode() for key in ("optim.epochs", "data.value_range", "model.backbone", "objective.setting"))

    def read_config(path: Path) -> None:
        load_config(path)

    def read_study(path: Path) -> None:
        load_space(str(path))

    return {
        "settings": Reader(
            [_SMALL.to_yaml().encode(), small, _laughs("optim")], read_config, "input.yaml", (*_YAML, *keys)
        ),
        "study of a sweep": Reader([grid, _laughs("seed")], read_study, "input.yaml", (*_YAML, *keys), is_named=False),
    }


def _of_runs() -> dict[str, Reader]:
    encoder, settings = untrained_encoder(_SMALL), _SMALL.to_yaml().encode()
    teacher = {f"backbone.{key}": value for key, value in encoder.backbone.state_dict().items()}
    state = {"teacher": teacher, "config": _SMALL.model_dump(mode="json"), "step": 1}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(save_checkpoint(folder, 1, state, {"metrics": {"loss": 1.0}}))
        saved, manifest = ((checkpoint / name).read_bytes() for name in ("state.pt", "manifest.json"))
        export_backbone(encoder, f"{folder}/exported")
        facts, weights = (
            (Path(folder) / "exported" / name).read_bytes() for name in ("config.json", "model.safetensors")
        )

    def read_manifest(path: Path) -> None:
        path.with_name("state.pt").write_bytes(saved)
        load_encoder(path.parent)

    def read_state(path: Path) -> None:
        of_it = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        path.with_name("manifest.json").write_text(json.dumps({"step": 1, "files": {"state.pt": of_it}}))
        load_encoder(path.parent)

    def read_exported(path: Path) -> None:
        for name, content in (("config.json", facts), ("model.safetensors", weights)):
            if path.name != name:
                path.with_name(name).write_bytes(content)
        load_encoder(path.parent)

    def read_run(path: Path) -> None:
        run = RunDirectory(path.parent)
        if path.name != "config.yaml":
            run.write("config.yaml", settings)
        run.check_config(_SMALL)
        for kind in (records.RunData, records.Summary, records.Evaluation, records.SweepFile, records.Holder):
            read_record(run, kind)
        read_metrics(run)

    def of_run(record: records.FileRecord) -> Reader:
        return Reader([json.dumps(record.json_values()).encode()], read_run, record.FILE, _JSON)

    lines = b'{"step": 10, "loss": 1.5}\n{"step": 20, "loss": 1.25, "knn": 0.5}\n'
    torch_files = io.BytesIO(), io.BytesIO()
    for is_new, file in enumerate(torch_files):
        torch.save({"model": {"w": torch.ones(9)}}, file, _use_new_zipfile_serialization=bool(is_new))
    tensors = safetensors.torch.save({"w": torch.ones(9)})
    foreign = [*(file.getvalue() for file in torch_files), tensors, _safetensors_of(1 << 45)]
    return {
        "manifest of a checkpoint": Reader([manifest], read_manifest, "manifest.json", (*_JSON, b"state.pt")),
        "state of a checkpoint": Reader([saved], read_state, "state.pt", (b"posix\nsystem\n", b"\x80\x02")),
        "exported settings": Reader([facts], read_exported, "config.json", _JSON),
        "exported weights": Reader([weights, _safetensors_of(1 << 45)], read_exported, "model.safetensors", _JSON[2:]),
        "weights of others": Reader(foreign, read_foreign, "input.pth", (b"cposix\nsystem\n", b"\x80\x02", b".")),
        "settings of a run": Reader([settings], read_run, "config.yaml", _YAML),
        "data of a run": of_run(records.RunData(sources=["a"], images=3, digest="0")),
        "list of trials": of_run(records.SweepFile(grid="a", trials={})),
        "lease": of_run(records.Holder(host="a", pid=1, token="b", since="c", heartbeat_ns=1)),
        "metrics": Reader([lines], read_run, METRICS, _JSON),
        **_of_stores(),
    }


def _safetensors_of(num_bytes: int) -> bytes:
    """A file whose only tensor is so long, it says."""
    header = {"w": {"dtype": "F32", "shape": [num_bytes // 4], "data_offsets": [0, num_bytes]}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def _of_stores() -> dict[str, Reader]:
    """Representations in the cache."""
    shape = (6, 4)
    with tempfile.TemporaryDirectory() as folder:
        with Store(Path(folder), shape) as store:
            store.add(Rows(np.arange(2), np.ones((2, 4), np.float32), ["", "broken"]))
        values, journal = ((Path(folder) / name).read_bytes() for name in ("values.npy", "journal.jsonl"))

    def read_store(path: Path) -> None:
        if path.name != "values.npy":
            path.with_name("values.npy").write_bytes(values)
        with Store(path.parent, shape) as store:
            np.load(store.path, mmap_mode="r")

    return {
        "values of a store": Reader([values], read_store, "values.npy", (b"|O", b"(6, 99999999999)", b"{", b")")),
        "journal of a store": Reader([journal], read_store, "journal.jsonl", (*_JSON, b"99", b"\n")),
    }
