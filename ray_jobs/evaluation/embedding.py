"""`glsd embed`: the representations of a data set as a Parquet file, a row for each image that can be decoded.

Columns are image_id (int64), uri (string), label (the name of the class, null where there are none), z_bar (d float32)
and, where dense, z (H W d float32, row by row of the map). Rows are in the order of image_id. The schema's metadata
`glsd` is JSON: `model` and `data` (digests), `backbone`, `resize`, `crop`, `shape` (H, W, d of z, or null) and
`num_skipped`.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from glsd.data.index import Index
from glsd.data.samples import value_range_note
from glsd.data.sources import Sources
from glsd.encoder.encoder import Encoder, model_digest
from glsd.storage.files import open_file
from glsd.storage.folder import Folder, replacing_uri
from glsd.storage.listing import what_is_at
from glsd.storage.uris import absolute, unquote_key
from glsd.weights.load import load_model
from ray_jobs.evaluation.features import Features, Selection, extract
from ray_jobs.evaluation.options import EmbedOptions
from ray_jobs.indexing import indexed
from ray_jobs.progress import ProgressLine
from ray_jobs.settings import JobSettings


class EmbedReport(NamedTuple):
    """What `embed` has written."""

    path: str
    """A path or URI."""
    num_images: int
    """Rows."""
    num_skipped: int
    """Images that could not be decoded; they have no row."""
    dim: int
    """d, the length of z_bar."""

    def __str__(self) -> str:
        skipped = f", {self.num_skipped:,} could not be decoded" if self.num_skipped else ""
        return f"{self.num_images:,} images of {self.dim} numbers{skipped}: {self.path}"


def embed(
    model: str,
    data: Sources,
    out: str | Path,
    options: EmbedOptions = EmbedOptions(),
    job: JobSettings = JobSettings(),
) -> EmbedReport:
    """Write the representations of all images; the same call resumes after a kill, and does nothing when it is done.

    Args:
        model: what `load_model` takes.
        data: folders, lists, tars or Parquet files, local or `s3://`, `gs://`.
        out: a new file, local or a URI. It appears whole, when all is computed.
        options: what is written of each image.
        job: workers and devices.

    Raises:
        ValueError: there is no such model, the data do not fit, or `out` lies within them or is something else, which
            is left as it is.
    """
    path = absolute(out)
    if Path(path).parent != Path("/"):  # where no source is, and which has no `Folder`
        Folder(path).check_apart(data)
    with ProgressLine() as line:
        encoder = load_model(model)
        index = indexed(data, encoder.config, line, job)
        facts = _facts(encoder, index, options.dense)
        is_there = what_is_at(path) is not None
        if not unquote_key(path).lower().endswith(".parquet") and not is_there:
            raise ValueError(f"--out {out} is written as Parquet; let its name end in .parquet")
        if is_there:
            report = _report(path, facts, index)
            line.phase(f"{out} is complete: nothing is left to do")
            return report
        if note := value_range_note((index,), encoder.config.data):
            line.note(note)
        features = extract(encoder, Selection.all(index), settings=job, line=line, dense=options.dense)
        _write(path, features, index, facts, line)
    return _report(path, facts, index)


def _facts(encoder: Encoder, index: Index, dense: bool) -> dict[str, Any]:
    """What the file's rows depend on, as its metadata have it."""
    config, size = encoder.config, encoder.config.evaluation.crop
    return {
        "model": model_digest(encoder),
        "data": index.digest,
        "backbone": config.model.backbone,
        "resize": config.evaluation.resize,
        "crop": size,
        "max_pixels": config.data.max_pixels,
        "value_range": config.data.value_range and list(config.data.value_range),
        "shape": [*encoder.backbone.grid(size), encoder.backbone.dim] if dense else None,
    }


def _write(path: str, features: Features, index: Index, facts: dict[str, Any], line: ProgressLine) -> None:
    dim = features.stored.shape[-1]
    columns = {"image_id": pa.int64(), "uri": pa.string(), "label": pa.string(), "z_bar": pa.list_(pa.float32(), dim)}
    if facts["shape"] is not None:
        columns["z"] = pa.list_(pa.float32(), math.prod(facts["shape"]))
    metadata = {"glsd": json.dumps({**facts, "num_skipped": len(features.skipped)})}
    schema = pa.schema(columns.items(), metadata)
    with replacing_uri(path) as stream, pq.ParquetWriter(stream, schema, use_dictionary=["label"]) as writer:
        num_written = 0
        for image_ids, rows in features.parts():
            writer.write_batch(_batch(image_ids, rows, index, schema))
            num_written += len(rows)
            line.phase("writing", f"{num_written:,} of {len(features.image_ids):,} rows")


def _batch(image_ids: NDArray[np.int64], rows: NDArray[np.float32], index: Index, schema: pa.Schema) -> pa.RecordBatch:
    labels = [None] * len(rows)
    if index.labels is not None:
        assert index.classes is not None
        labels = [index.classes[label] for label in index.labels[image_ids]]
    tokens = rows.reshape(len(rows), -1, rows.shape[-1])  # (m, 1 or 1 + H W, d)
    vectors = [tokens[:, 0], tokens[:, 1:]][: len(schema) - 3]
    arrays = [pa.array(image_ids), pa.array([index.uri(image_id) for image_id in image_ids.tolist()]), labels]
    lists = [
        pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), math.prod(values.shape[1:])) for values in vectors
    ]
    return pa.record_batch([*arrays, *lists], schema=schema)


def _report(path: str, facts: dict[str, Any], index: Index) -> EmbedReport:
    """What a complete file holds; another one is refused."""
    try:
        with open_file(path) as stream, pq.ParquetFile(stream) as file:
            schema, num_images = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a Parquet file, and is not overwritten; name another --out") from error
    saved = json.loads((schema.metadata or {}).get(b"glsd", b"null"))
    if saved is None:
        raise ValueError(f"{path} is not a file of glsd embed, and is not overwritten; name another --out")
    if index.has_digest(saved["data"]):
        facts = facts | {"data": saved["data"]}
    if others := [key for key, fact in facts.items() if saved[key] != fact]:
        raise ValueError(f"{path} is of another {', '.join(others)}, and is not overwritten; name another --out")
    return EmbedReport(path, num_images, saved["num_skipped"], schema.field("z_bar").type.list_size)
