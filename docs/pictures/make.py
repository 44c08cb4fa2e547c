"""Makes the pictures of the pages: the UI and the decision of a home that a demo or a nightly run has filled.

    python -m docs.pictures.make .finjepa      # or: make pictures

It starts the UI on that home, opens its pages in a headless Chromium, and leaves small PNG files beside itself.
Needs Debian's chromium (or google-chrome) on the PATH.
"""

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.system.dagster_server import DagsterServer

HERE = Path(__file__).parent
COLOURS = 64  # text and flat areas need no more, and the files stay small
LARGEST_BYTES = 300_000


def main() -> None:
    home = Path(
        sys.argv[1]
    ).absolute()  # and not FINJEPA_HOME: every process that has it in its environment is ended with the server
    decisions = sorted((home / "reports" / "decisions").glob("????-??-??.html"))
    reports = sorted((home / "reports").glob("*/index.html"), key=lambda page: page.stat().st_mtime)
    if not decisions or not reports:
        sys.exit(f"{home} has no decision or no report yet; run `finjepa demo` first")
    with tempfile.TemporaryDirectory() as folder, DagsterServer(home, dict(os.environ), Path(folder) / "log") as server:
        for name, page, size in (
            ("lineage", "/asset-groups", (2000, 900)),
            ("champion", "/assets/champion", (1500, 1100)),
        ):
            _picture(name, server.url + page, size, wait_ms=30_000)
    _picture("decision", decisions[-1].as_uri(), (1100, 1250))
    _picture("report", reports[-1].as_uri(), (1100, 1250), wait_ms=10_000)


def picture(url: str, size: tuple[int, int], wait_ms: int = 2_000) -> bytes:
    """A small PNG of a page."""
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
        image = Image.open(raw).convert("RGB").quantize(COLOURS)
    small = io.BytesIO()
    image.save(small, "PNG", optimize=True)
    if len(small.getvalue()) > LARGEST_BYTES:
        sys.exit(f"a picture of {url} would have {len(small.getvalue())} bytes; make its window smaller")
    return small.getvalue()


def _picture(name: str, url: str, size: tuple[int, int], wait_ms: int = 2_000) -> None:
    (HERE / f"{name}.png").write_bytes(picture(url, size, wait_ms))


if __name__ == "__main__":
    main()
