"""On a full disk a command ends with one line, nothing is lost, and the same command works when there is room again."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.system.product import finjepa, is_one_line, quick_training, works, write_prices

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def disk(tmp_path):
    """A file system of 256 MB: the markets that an audit simulates need some."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, free_kb: int) -> Path:
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - (free_kb << 10))
    return filler


def test_every_command_on_a_full_disk(disk, tmp_path):
    home, prices = disk / "home", write_prices(tmp_path / "prices")
    source = ["--data-source", "files", "--path", str(prices)]
    for command in (
        ["ingest", *source],
        ["train", *source, *quick_training()],
        ["backtest", "--planner", "mppi", "--controls", "none"],
        ["publish"],
        ["decide"],
    ):
        for free_kb in (0, 100, 1000):
            filler = fill(disk, free_kb)
            done = finjepa(home, *command)
            if free_kb < 1000:  # which is enough for some of them
                is_one_line(done.returncode, done.stderr, "the disk of", "is full")
            filler.unlink()
        works(home, *command)
    fill(disk, 0)
    assert "freed" in works(home, "clean", "--keep", "1")
