"""FINJEPA_ARTIFACTS: what is put there is there whole or not at all, whoever dies and whoever writes beside; once is enough.

The main properties are tried in a shared folder and, where s3fs and nanio are installed, on an S3-compatible server on loopback.
"""

import importlib.util
import json
import multiprocessing
import os
import tempfile
from pathlib import Path

import pytest

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.store import Artifacts, bring, files_of, keep
from tests.pipeline.object_store import BUCKET, object_store

_HAS_S3 = all(importlib.util.find_spec(name) for name in ("s3fs", "nanio"))
_SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    if not _HAS_S3:
        pytest.skip("needs s3fs and nanio")
    with object_store(tmp_path_factory.mktemp("s3")) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield environment


@pytest.fixture(params=["folder", "s3"])
def url(request, tmp_path):
    if request.param == "folder":
        return str(tmp_path / "shared")
    request.getfixturevalue("server")
    return f"s3://{BUCKET}/{tmp_path.name}"


def _written(folder: Path, **contents: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_text(content * 1000)
    return folder


@pytest.mark.parametrize(
    "name", ["../../x", "a/../../x", "/tmp/x", "", "a//x", ".hidden", "a/.ssh/x", "..\\x", "C:x", "a\x00", "./x"]
)
def test_a_manifest_names_no_file_outside_of_its_artefact(tmp_path, name):
    store = Artifacts(str(tmp_path / "shared"))
    store.put("checkpoints", "x", _written(tmp_path / "a", weights="1"))
    manifest = tmp_path / "shared" / "checkpoints" / "x" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({"files": {name: content["files"]["weights"]}}))
    with pytest.raises(FinJEPAError, match="no file of it") as refused:
        store.get("checkpoints", "x", tmp_path / "there")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "x").exists()
    content["files"]["weights"]["sha256"] = "../../../etc/" + "0" * 51
    manifest.write_text(json.dumps(content))
    with pytest.raises(FinJEPAError, match="no file of it"):
        store.has("checkpoints", "x")


def test_the_cache_is_of_this_user_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = Artifacts(str(tmp_path / "shared"))
    folder = store.cache().parent
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    with pytest.raises(FinJEPAError, match="not a folder of this user"):
        store.cache()
    folder.rmdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FinJEPAError, match="not a folder of this user"):
        store.cache()


def test_what_a_home_keeps_another_home_brings_and_nothing_is_sent_twice(url, tmp_path):
    name = "0123456789abcdef"
    first, second = (Settings(home=tmp_path / home, artifacts=url).ensure() for home in "ab")
    folder = _written(first.checkpoints / name, weights="1", config="2", **{".hidden": "3"})
    _written(folder / "deep", report="4")
    assert not bring(second, second.checkpoints / name)
    assert keep(first, folder)
    assert not keep(first, folder)
    assert bring(second, second.checkpoints / name)
    assert {inside: file.read_bytes() for inside, file in files_of(second.checkpoints / name).items()} == {
        inside: file.read_bytes() for inside, file in files_of(folder).items()
    }
    assert not bring(second, second.checkpoints / "fedcba9876543210")
    assert not keep(Settings(home=tmp_path / "a"), folder)  # no store, nothing to do
    other = Artifacts(url).in_place(tmp_path / "nowhere" / "checkpoints" / name)
    assert (other / "weights").read_text() == "1" * 1000


def _die_before_the_manifest(url: str, folder: Path) -> None:
    store = Artifacts(url)
    send = store._send
    store._send = lambda file, place: os._exit(9) if place.endswith("manifest.json") else send(file, place)
    store.put("checkpoints", "x", folder)


def test_a_writer_that_is_killed_before_the_manifest_has_changed_nothing(url, tmp_path):
    store, folder = Artifacts(url), _written(tmp_path / "a", weights="1", config="2")
    writer = _SPAWN.Process(target=_die_before_the_manifest, args=(url, folder))
    writer.start()
    writer.join(60)
    assert writer.exitcode == 9
    assert not store.get("checkpoints", "x", tmp_path / "there")
    assert store.put("checkpoints", "x", folder)
    assert store.get("checkpoints", "x", tmp_path / "there")
    assert (tmp_path / "there" / "weights").read_text() == "1" * 1000


def _write(url: str, folder: Path, who: str) -> None:
    Artifacts(url).put("checkpoints", "x", _written(folder, weights=who, config=who))


def test_of_two_writers_at_once_one_is_got_whole(url, tmp_path):
    writers = [_SPAWN.Process(target=_write, args=(url, tmp_path / who, who)) for who in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert Artifacts(url).get("checkpoints", "x", tmp_path / "there")
    assert (tmp_path / "there" / "weights").read_text() == (tmp_path / "there" / "config").read_text()


def test_a_damaged_object_is_one_line(url, tmp_path):
    store = Artifacts(url)
    store.put("checkpoints", "x", _written(tmp_path / "a", weights="1"))
    fs, root = store.file_system
    (place,) = [p for p in fs.find(f"{root}/checkpoints/x") if p.endswith("weights")]
    fs.pipe_file(place, b"2" * 1000)
    with pytest.raises(FinJEPAError, match="weights is damaged") as told:
        store.get("checkpoints", "x", tmp_path / "there")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("wrong", ["nonsense://bucket", "/proc/no/folder/here", "s3://no-such-bucket"])
def test_what_is_no_store_is_one_line(wrong, tmp_path, request):
    if wrong.startswith("s3"):
        request.getfixturevalue("server")
    with pytest.raises(FinJEPAError, match=f"FINJEPA_ARTIFACTS={wrong}") as refused:
        Artifacts(wrong).put("checkpoints", "x", _written(tmp_path / "a", weights="1"))
    assert "\n" not in str(refused.value)
