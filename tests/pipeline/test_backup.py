"""A home that is saved while others write to it comes back as it was."""

import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

BACKUP = Path(__file__).resolve().parents[2] / "deploy" / "backup.py"
HOLD = """
import duckdb, sys, time
con = duckdb.connect(sys.argv[1])
con.execute("CREATE TABLE champions AS SELECT 'aaaa' AS checkpoint")
print("held", flush=True)
time.sleep(2)
con.execute("INSERT INTO champions VALUES ('bbbb')")
con.close()
"""


def backup(home: Path, action: str, archive: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BACKUP, action, archive]
    return subprocess.run(command, env=os.environ | {"FINJEPA_HOME": str(home)}, capture_output=True, text=True)


@pytest.fixture
def home(tmp_path) -> Path:
    home = tmp_path / "home"
    release = home / "releases" / "2022-12-28-c0ffee"
    release.mkdir(parents=True)
    (release / "README.md").write_text("a card")
    (home / "releases" / ".tmp-half").mkdir()
    (home / "panels").mkdir()
    return home


def test_a_backup_waits_for_who_writes_and_comes_back_whole(home, tmp_path):
    archive, other = tmp_path / "backup.tar.gz", tmp_path / "other"
    with subprocess.Popen([sys.executable, "-c", HOLD, home / "warehouse.duckdb"], stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"held\n"
        saved = backup(home, "save", archive)
    assert saved.returncode == 0, saved.stderr
    assert backup(other, "restore", archive).returncode == 0
    with duckdb.connect(str(other / "warehouse.duckdb"), read_only=True) as con:
        assert con.execute("FROM champions ORDER BY ALL").fetchall() == [("aaaa",), ("bbbb",)]
    assert [str(path.relative_to(other)) for path in sorted(other.rglob("*"))] == [
        "releases", "releases/2022-12-28-c0ffee", "releases/2022-12-28-c0ffee/README.md", "warehouse.duckdb",
    ]  # fmt: skip
    again = backup(other, "restore", archive)
    assert again.returncode == 1
    assert "is not empty" in again.stderr


def test_a_damaged_archive_and_an_empty_home_are_refused_in_one_line(home, tmp_path):
    archive, other = tmp_path / "backup.tar.gz", tmp_path / "other"
    nothing = backup(home, "save", archive)
    assert (nothing.returncode, nothing.stderr.count("\n")) == (1, 1)
    assert not archive.exists()
    with duckdb.connect(str(home / "warehouse.duckdb")) as con:
        con.execute("CREATE TABLE champions AS SELECT 'aaaa' AS checkpoint")
    assert backup(home, "save", archive).returncode == 0
    archive.write_bytes(archive.read_bytes()[:-200])
    cut = backup(other, "restore", archive)
    assert (cut.returncode, cut.stderr.count("\n")) == (1, 1)
    assert not other.exists()
