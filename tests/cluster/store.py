"""An S3 server on the lab's network, `python -m tests.cluster.store FOLDER HOST DELAY_S`: who asks for what is printed.

Reading takes some time, so that a small run is not over before something has happened to it.
"""

import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.glsd.storage.object_store import BucketHandler, object_store

if __name__ == "__main__":
    folder, host, delay_s = sys.argv[1:]
    BucketHandler.log_message = BaseHTTPRequestHandler.log_message  # type: ignore[method-assign]
    with object_store(Path(folder), delay_s=float(delay_s), host=host) as address:
        print(address, flush=True)
        threading.Event().wait()
