"""Makes the pictures of the README: the UI and the decision of a home that a demo or a night has filled.

    FINJEPA_HOME=.finjepa python docs/pictures/make.py      # or: make pictures

It starts `dagster dev` on that home, opens its pages in a headless Chromium, wide and narrow, and leaves small PNG files beside
itself. Needs Debian's chromium (or google-chrome) on the PATH.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
COLOURS = 64  # text and flat areas need no more, and the files stay small
LARGEST_BYTES = 300_000
LOCATION = "/locations/__repository__@finjepa"


def main() -> None:
    home = Path(os.environ.get("FINJEPA_HOME") or ".finjepa").absolute()
    decisions = sorted((home / "reports" / "decisions").glob("????-??-??.html"))
    reports = sorted((home / "reports").glob("*/index.html"), key=lambda page: page.stat().st_mtime)
    if not decisions or not reports:
        sys.exit(f"{home} has no decision or no report yet; run `finjepa demo` first")
    with _dagster(home) as url:
        for name, page, size in (
            ("lineage", "/asset-groups", (2000, 900)),
            ("champion", "/assets/champion", (1500, 1100)),
        ):
            _picture(name, url + page, size, wait_ms=30_000)
    _picture("decision", decisions[-1].as_uri(), (1100, 1250))
    _picture("report", reports[-1].as_uri(), (1100, 1250), wait_ms=10_000)
    for name, page in (("decision_narrow", decisions[-1]), ("report_narrow", reports[-1])):
        _picture(name, page.as_uri(), (500, 1250), wait_ms=10_000)


def _picture(name: str, url: str, size: tuple[int, int], wait_ms: int = 2_000) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("no chromium on the PATH; apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.png"
        subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}/profile",
                f"--window-size={size[0]},{size[1]}", f"--virtual-time-budget={wait_ms}", f"--screenshot={raw}", url,
            ],
            check=True, capture_output=True, timeout=180,
        )  # fmt: skip
        picture = Image.open(raw).convert("RGB").quantize(COLOURS)
    small = io.BytesIO()
    picture.save(small, "PNG", optimize=True)
    if len(small.getvalue()) > LARGEST_BYTES:
        sys.exit(f"{name}.png would have {len(small.getvalue())} bytes; make its window smaller")
    (HERE / f"{name}.png").write_bytes(small.getvalue())


@contextlib.contextmanager
def _dagster(home: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    bin_folder = Path(sys.executable).parent
    process = subprocess.Popen(
        [bin_folder / "dagster", "dev", "-h", "127.0.0.1", "-p", str(port), "-w", HERE.parents[1] / "workspace.yaml"],
        env=os.environ
        | {
            "FINJEPA_HOME": str(home),
            "DAGSTER_HOME": str(home / "dagster"),
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _wait_for(url: str) -> None:
    query = json.dumps({"query": "{ assetNodes { id } }"}).encode()
    for _ in range(300):
        with contextlib.suppress(OSError, KeyError, TypeError):
            request = urllib.request.Request(f"{url}/graphql", query, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                if json.load(answer)["data"]["assetNodes"]:
                    return
        time.sleep(1)
    sys.exit("dagster dev did not come up")


if __name__ == "__main__":
    main()
