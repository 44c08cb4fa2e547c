"""An S3-compatible server on loopback: nanio, over HTTP and with signed requests, on files of its own."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

KEYS = {"AWS_ACCESS_KEY_ID": "finjepa", "AWS_SECRET_ACCESS_KEY": "finjepa-secret", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "finjepa"


@contextlib.contextmanager
def object_store(folder: Path) -> Iterator[dict[str, str]]:
    """While the block runs, a server with one bucket; the block gets the environment that its clients need."""
    (folder / BUCKET).mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"NANIO_ACCESS_KEY": KEYS["AWS_ACCESS_KEY_ID"], "NANIO_SECRET_KEY": KEYS["AWS_SECRET_ACCESS_KEY"]}
    server = subprocess.Popen(
        [sys.executable, "-m", "nanio", "serve", "--data-dir", folder, "--host", "127.0.0.1", "--port", str(port)],
        env=os.environ | own,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            assert server.poll() is None
            assert time.monotonic() < deadline
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        yield KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    finally:
        server.terminate()
        server.wait(timeout=30)
