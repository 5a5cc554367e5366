"""An S3 server on the lab's network, with photographs. It notes who asks for what.

Reading takes some time, so that a small run is not over before something has happened to it.
"""

import re
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.cluster.lab import LAPTOP, Lab
from tests.glsd.storage.object_store import BucketHandler, object_store
from tests.images import labelled_folder


@dataclass(frozen=True)
class Store:
    """A running server, with the one bucket `lab`."""

    folder: Path
    """The bucket."""
    log: Path
    """Who has asked for what."""
    address: str

    def uri(self, name: str) -> str:
        """Of a folder of the bucket."""
        return f"s3://lab/{name}?endpoint_override={self.address}&scheme=http&region=us-east-1"

    def readers(self, name: str) -> set[str]:
        """The addresses of those who have read in a folder of the bucket."""
        return set(re.findall(rf'^(\S+) .* "GET /lab/{name}/', self.log.read_text(), re.M))


def start_store(lab: Lab, delay_s: float) -> Store:
    """A server on the laptop, with 40 photographs in folders of classes (`classes`) and without (`flat`).

    Args:
        lab: with the laptop.
        delay_s: until something that is read is answered.
    """
    bucket, log = lab.home / "store" / "lab", lab.folder / "store.log"
    labelled_folder(bucket / "classes", 40)
    (bucket / "flat").mkdir()
    for photo in (bucket / "classes").glob("*/*"):
        shutil.copy(photo, bucket / "flat")
    command = ("python", "-m", "tests.cluster.store", str(bucket.parent), LAPTOP, str(delay_s))
    with log.open("w") as stream:
        server = lab.start(*command, stdout=subprocess.PIPE, stderr=stream)
    assert server.stdout is not None
    return Store(bucket, log, server.stdout.readline().strip())


if __name__ == "__main__":
    BucketHandler.log_message = BaseHTTPRequestHandler.log_message  # type: ignore[method-assign] # to standard error
    with object_store(Path(sys.argv[1]), host=sys.argv[2], delay_s=float(sys.argv[3])) as address:
        print(address, flush=True)
        threading.Event().wait()
