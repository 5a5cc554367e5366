"""A small server of Google Cloud Storage over a folder of buckets: what `pyarrow.fs` asks of its JSON API.

A folder is but a part of names there: only a marker, an empty object whose name ends in a slash, makes one that is seen
without its files. Folders of `root` have none, as those of any upload; clients may make some.

It runs in a process of its own: pyarrow waits for the first byte of a file that is read by range with Python's lock
held, and a server of the same process would never send it.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from subprocess import PIPE
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.glsd.storage.object_store import BucketHandler, serving

REQUESTS = "requests.txt"
"""What was asked, a line a request, beside the buckets."""

_REPOSITORY = Path(__file__).parents[3]


class _Handler(BucketHandler):
    markers: dict[str, dict[str, object]]
    uploads: dict[str, bytes]

    def do_GET(self) -> None:  # noqa: N802 - so named by http.server
        bucket, name = self.asked()
        if name and (facts := self.facts(bucket, name)):
            if self.query.get("alt") == "media":
                self.answer_content((self.root / bucket / name).read_bytes())
            else:
                self.answer_json(facts)
        elif name or not (self.root / bucket).is_dir():
            self.answer_missing()
        else:
            listed = urlsplit(self.path).path.endswith("/o")
            self.answer_json({"items": self.listing(bucket)} if listed else {"name": bucket})

    def do_POST(self) -> None:  # noqa: N802 - so named by http.server
        """The begin of an upload, or a marker: nothing else comes in one piece."""
        bucket, _ = self.asked()
        self.body()
        name = self.query["name"]
        if self.query["uploadType"] == "resumable":
            self.uploads[f"{bucket}/{name}"] = b""
            address = f"http://{self.headers['Host']}/storage/v1/b/{bucket}/o/{quote(name, safe='')}"
            self.answer(200, b"", {"Location": address})
        else:
            self.markers[f"{bucket}/{name}"] = _facts(bucket, name) | {"metadata": {"arrow/gcsfs": "directory"}}
            self.answer_json(self.markers[f"{bucket}/{name}"])

    def do_PUT(self) -> None:  # noqa: N802 - so named by http.server
        """A part of an upload; the last one names the size of the whole."""
        bucket, name = self.asked()
        assert name is not None
        data = self.uploads[f"{bucket}/{name}"] = self.uploads[f"{bucket}/{name}"] + self.body()
        if self.headers["Content-Range"].endswith("/*"):
            self.answer(308, b"", {"Range": f"bytes=0-{len(data) - 1}"})
            return
        path = self.root / bucket / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.answer_json(_facts(bucket, name, path))

    def do_DELETE(self) -> None:  # noqa: N802 - so named by http.server
        bucket, name = self.asked()
        assert name is not None
        if not self.facts(bucket, name):
            self.answer_missing()
            return
        if not self.markers.pop(f"{bucket}/{name}", None):
            (self.root / bucket / name).unlink()
        self.answer(204, b"", {})

    def asked(self) -> tuple[str, str | None]:
        """The bucket, and the object if one is named."""
        parts = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        bucket, _, name = parts.path.removeprefix("/upload").removeprefix("/storage/v1/b/").partition("/o/")
        return bucket.removesuffix("/o"), unquote(name) or None

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def facts(self, bucket: str, name: str) -> dict[str, object] | None:
        path = self.root / bucket / name
        if name.endswith("/"):
            return self.markers.get(f"{bucket}/{name}")
        return _facts(bucket, name, path) if path.is_file() else None

    def listing(self, bucket: str) -> list[dict[str, object] | None]:
        """Objects below the prefix; where levels are told apart, only those of the first, among them markers."""
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        files = [path.relative_to(self.root).as_posix() for path in (self.root / bucket).rglob("*") if path.is_file()]
        names = [name.removeprefix(f"{bucket}/") for name in sorted((*files, *self.markers))]
        return [
            self.facts(bucket, name)
            for name in names
            if name.startswith(prefix) and not (delimiter and delimiter in name[len(prefix) : -1])
        ]

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        with (self.root / REQUESTS).open("a") as log:
            log.write(f"{self.requestline}\n")

    def answer_json(self, facts: object) -> None:
        self.answer(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})

    def answer_missing(self) -> None:
        self.answer(404, b'{"error": {"code": 404, "message": "not there"}}', {"Content-Type": "application/json"})

    def answer_content(self, data: bytes) -> None:
        status, headers = 200, dict[str, str]()
        if requested := self.headers.get("Range"):
            first, last = requested.removeprefix("bytes=").split("-")
            size = len(data)
            data, status = data[int(first) : int(last or size) + 1], 206
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(data) - 1}/{size}"
        self.answer(status, data, headers)


def _facts(bucket: str, name: str, path: Path | None = None) -> dict[str, object]:
    """What is known of an object; of a marker, where there is no file."""
    size, changed = (path.stat().st_size, path.stat().st_mtime_ns) if path else (0, 1)
    created = f"{datetime.fromtimestamp(changed / 1e9, UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
    return {"bucket": bucket, "name": name, "size": str(size), "timeCreated": created, "generation": str(changed)}


@contextmanager
def google_store(root: Path) -> Iterator[str]:
    """The address of a server whose buckets are the folders in root."""
    command = [sys.executable, "-m", "tests.glsd.storage.google_store", str(root)]
    with subprocess.Popen(command, cwd=_REPOSITORY, stdin=PIPE, stdout=PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()


if __name__ == "__main__":
    with serving(type("Handler", (_Handler,), {"root": Path(sys.argv[1]), "uploads": {}, "markers": {}})) as address:
        print(address, flush=True)
        sys.stdin.read()  # until the caller closes it, or is gone
