"""A home that is saved while others write to it comes back as it was."""

import os
import subprocess
import sys
from pathlib import Path

import duckdb

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


def is_refused(done: subprocess.CompletedProcess[str]) -> bool:
    return (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_a_backup_waits_for_who_writes_and_comes_back_whole_or_is_refused_in_one_line(tmp_path):
    home, archive, other = tmp_path / "home", tmp_path / "backup.tar.gz", tmp_path / "other"
    for name in ("releases/v1", "releases/.tmp-half", "panels"):
        (home / name).mkdir(parents=True)
    (home / "releases" / "v1" / "README.md").write_text("a card")
    assert is_refused(backup(home, "save", archive))  # there is nothing to save
    assert not archive.exists()
    with subprocess.Popen([sys.executable, "-c", HOLD, home / "warehouse.duckdb"], stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"held\n"
        saved = backup(home, "save", archive)
    assert saved.returncode == 0, saved.stderr
    assert backup(other, "restore", archive).returncode == 0
    with duckdb.connect(str(other / "warehouse.duckdb"), read_only=True) as con:
        assert con.execute("FROM champions ORDER BY ALL").fetchall() == [("aaaa",), ("bbbb",)]
    found = [str(path.relative_to(other)) for path in sorted(other.rglob("*"))]
    assert found == ["releases", "releases/v1", "releases/v1/README.md", "warehouse.duckdb"]
    assert "is not empty" in backup(other, "restore", archive).stderr
    archive.write_bytes(archive.read_bytes()[:-200])
    assert is_refused(backup(tmp_path / "third", "restore", archive))
    assert not (tmp_path / "third").exists()
