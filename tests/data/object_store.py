"""A small S3 server over a folder of buckets: enough of the protocol to list, look at and read objects by range."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        path = self.root / bucket / key
        if "list-type" in query:
            self.answer(200, self.listing(self.root / bucket, query.get("prefix", "")), {})
        elif key and path.is_file():
            data, status = path.read_bytes(), 200
            headers = {"Last-Modified": formatdate(path.stat().st_mtime, usegmt=True), "ETag": '"etag"'}
            if requested := self.headers.get("Range"):
                first, last = requested.removeprefix("bytes=").split("-")
                size = len(data)
                data, status = data[int(first) : int(last) + 1], 206
                headers["Content-Range"] = f"bytes {first}-{int(first) + len(data) - 1}/{size}"
            self.answer(status, data, headers)
        elif not key and path.is_dir():
            self.answer(200, b"", {})
        else:
            self.answer(404, b"<Error><Code>NoSuchKey</Code><Message>not there</Message></Error>", {})

    def listing(self, bucket: Path, prefix: str) -> bytes:
        files = sorted(path for path in bucket.rglob("*") if path.is_file())
        keys = {path.relative_to(bucket).as_posix(): path.stat() for path in files}
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{status.st_size}</Size><ETag>etag</ETag>"
            f"<LastModified>{datetime.fromtimestamp(status.st_mtime, UTC):%Y-%m-%dT%H:%M:%SZ}</LastModified></Contents>"
            for key, status in keys.items()
            if key.startswith(prefix)
        )
        count = contents.count("<Contents>")
        head = f"<Name>{bucket.name}</Name><KeyCount>{count}</KeyCount><IsTruncated>false</IsTruncated>"
        return f'<?xml version="1.0"?><ListBucketResult>{head}{contents}</ListBucketResult>'.encode()

    def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def object_store(root: Path) -> Iterator[str]:
    """The address of a server whose buckets are the folders in root."""
    handler = type("Handler", (_Handler,), {"root": root})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
