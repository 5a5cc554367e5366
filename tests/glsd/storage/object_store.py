"""A small S3 server over a folder of buckets: enough of the protocol to list, look at, read by range, write, delete.

It may be slow, and some of its answers may go wrong.
"""

import io
import os
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from typing import BinaryIO, Literal, get_args
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

Fault = Literal["reset", "500", "503", "half", "silence"]
"""A broken connection, an error, a request to slow down, half of the answer, nothing."""
SILENCE_S = 60
"""Longer than clients wait."""


@dataclass
class Faults:
    """A share of the answers goes wrong, drawn by a seed, in each of these ways in turn; the server counts them."""

    rate: float
    kinds: Sequence[Fault] = get_args(Fault)
    seed: int = 0
    spared: int = 0
    """The first so many answers are right."""
    most: int | None = None
    """So many answers go wrong and no more."""
    injected: Counter[Fault] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random, self._lock = random.Random(self.seed), Lock()

    def draw(self, method: str) -> Fault | None:
        """What happens to the next answer; what has no body cannot be cut."""
        with self._lock:
            self.spared -= 1
            if self.spared >= 0 or self._random.random() >= self.rate or self.injected.total() == self.most:
                return None
            kind = self.kinds[self.injected.total() % len(self.kinds)]
            if method != "GET" and kind == "half":
                kind = "reset"
            self.injected[kind] += 1
            return kind


class BucketHandler(BaseHTTPRequestHandler):
    """What servers of several protocols have in common."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or a body waits until its headers are acknowledged, 40 ms later
    root: Path

    def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class _Handler(BucketHandler):
    uploads: dict[str, dict[int, bytes]]
    asked: list[str]
    delay_s: float
    faults: Faults
    ended: Event
    fault: Fault | None = None

    def parse_request(self) -> bool:
        """Whether there is a request that is to be answered as it should, or at least in part."""
        if not super().parse_request():
            return False
        self.fault = self.faults.draw(self.command)
        if self.fault in (None, "half"):
            return True
        self.asked.append(self.command)
        self.close_connection = True
        if self.fault == "500":
            self.answer(500, b"<Error><Code>InternalError</Code><Message>again, please</Message></Error>", {})
        elif self.fault == "503":
            self.answer(503, b"<Error><Code>SlowDown</Code><Message>reduce your rate</Message></Error>", {})
        else:
            if self.fault == "silence":
                self.ended.wait(SILENCE_S)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())  # at once, so that the other side hears of a reset
        return False

    def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        if self.fault == "half":
            headers, self.close_connection = headers | {"Content-Length": str(len(data))}, True
            data = data[: len(data) // 2]
        super().answer(status, data, headers)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(self.command)
        time.sleep(self.delay_s)
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        path = self.root / bucket / key
        if "list-type" in query:
            self.answer(200, self.listing(self.root / bucket, query.get("prefix", ""), query.get("delimiter")), {})
        elif key and path.is_file():
            size, status = path.stat().st_size, 200
            headers = {"Last-Modified": formatdate(path.stat().st_mtime, usegmt=True), "ETag": '"etag"'}
            first, end = 0, size
            if requested := self.headers.get("Range"):
                first, last = map(int, requested.removeprefix("bytes=").split("-"))
                end, status = min(last + 1, size), 206
                headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
            with path.open("rb", buffering=0) as file:
                self.answer(status, os.pread(file.fileno(), end - first, first), headers)
        elif not key and path.is_dir():
            self.answer(200, b"", {})
        else:
            self.answer(404, b"<Error><Code>NoSuchKey</Code><Message>not there</Message></Error>", {})

    def do_POST(self) -> None:
        """The begin and the end of an upload in parts."""
        parts = urlsplit(self.path)
        target = self.root / unquote(parts.path).lstrip("/")
        self.body()
        if "uploads" in parse_qs(parts.query, keep_blank_values=True):
            self.answer(
                200, b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>", {}
            )
            return
        pieces = sorted(self.uploads[str(target)].items())
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"".join(piece for _, piece in pieces))
        self.answer(200, b"<CompleteMultipartUploadResult><ETag>etag</ETag></CompleteMultipartUploadResult>", {})

    def do_PUT(self) -> None:
        """A part of an object, or an empty one that stands for a folder."""
        parts = urlsplit(self.path)
        number = parse_qs(parts.query).get("partNumber", ["0"])[0]
        if not parts.path.endswith("/"):
            target = str(self.root / unquote(parts.path).lstrip("/"))
            self.uploads.setdefault(target, {})[int(number)] = self.body()
        self.answer(200, b"", {"ETag": '"etag"'})

    def do_DELETE(self) -> None:
        (self.root / unquote(urlsplit(self.path).path).lstrip("/")).unlink()
        self.answer(204, b"", {})

    def body(self) -> bytes:
        """What was sent, in chunks of HTTP with chunks of S3 within, or as it is."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = unchunked(self.rfile)
        return unchunked(io.BytesIO(data)) if self.headers.get("Content-Encoding") == "aws-chunked" else data

    def listing(self, bucket: Path, prefix: str, delimiter: str | None) -> bytes:
        """The objects below a prefix; with a delimiter, what has another one after the prefix goes as one."""
        files = sorted(path for path in bucket.rglob("*") if path.is_file())
        keys = {path.relative_to(bucket).as_posix(): path.stat() for path in files}
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{status.st_size}</Size><ETag>etag</ETag>"
            f"<LastModified>{datetime.fromtimestamp(status.st_mtime, UTC):%Y-%m-%dT%H:%M:%SZ}</LastModified></Contents>"
            for key, status in keys.items()
            if key.startswith(prefix) and not (delimiter and delimiter in key[len(prefix) :])
        )
        if delimiter:
            below = (key[len(prefix) :].partition(delimiter) for key in keys if key.startswith(prefix))
            common = sorted({prefix + first + delimiter for first, found, _ in below if found})
            contents += "".join(f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in common)
        count = contents.count("<Contents>")
        head = f"<Name>{bucket.name}</Name><KeyCount>{count}</KeyCount><IsTruncated>false</IsTruncated>"
        return f'<?xml version="1.0"?><ListBucketResult>{head}{contents}</ListBucketResult>'.encode()


def unchunked(stream: BinaryIO) -> bytes:
    """Chunks put together: each has its size before it, an empty one is the last, and trailers follow it."""
    data = b""
    while size := int(stream.readline().partition(b";")[0], 16):
        data += stream.read(size)
        stream.readline()
    while stream.readline().strip():
        continue
    return data


@contextmanager
def object_store(
    root: Path,
    asked: list[str] | None = None,
    delay_s: float = 0,
    faults: Faults | None = None,
    host: str = "127.0.0.1",
) -> Iterator[str]:
    """The address of a server whose buckets are the folders in root.

    It notes the methods of what it is asked for, and answers what is read after a delay, and some not as it should.
    """
    ended = Event()
    own = {"root": root, "uploads": {}, "asked": [] if asked is None else asked, "delay_s": delay_s}
    faulty = {"faults": Faults(0) if faults is None else faults, "ended": ended}
    with serving(type("Handler", (_Handler,), own | faulty), host) as address:
        yield address
        ended.set()


@contextmanager
def serving(handler: type[BucketHandler], host: str = "127.0.0.1") -> Iterator[str]:
    """The address of a server that answers so."""
    with ThreadingHTTPServer((host, 0), handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"{host}:{server.server_port}"
        server.shutdown()
        thread.join()
