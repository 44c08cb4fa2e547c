"""FINJEPA_ARTIFACTS: what is put there is there whole or not at all, whoever dies and whoever writes beside; once is enough.

Every property is tried in a shared folder and, where s3fs and nanio are installed, on an S3-compatible server on loopback.
"""

import importlib.util
import json
import multiprocessing
import os
import shutil
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
    with object_store(tmp_path_factory.mktemp("s3")) as environment:
        before = dict(os.environ)
        os.environ.update(environment)
        yield environment
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(params=["folder", "s3"])
def url(request, tmp_path):
    if request.param == "folder":
        return str(tmp_path / "shared")
    request.getfixturevalue("server")
    return f"s3://{BUCKET}/{tmp_path.name}"


def _written(folder: Path, **contents: str) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_text(content * 1000)
    return files_of(folder)


@pytest.mark.parametrize(
    "name", ["../../x", "a/../../x", "/tmp/x", "", "a//x", ".hidden", "a/.ssh/x", "..\\x", "C:x", "a\x00", "./x"]
)
def test_a_manifest_names_no_file_outside_of_its_artefact(tmp_path, name):
    store, made = Artifacts(str(tmp_path / "shared")), _written(tmp_path / "a", weights="1")
    store.put("checkpoints", "x", made)
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
    store.cache()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FinJEPAError, match="not a folder of this user"):
        store.cache()
    folder.unlink()
    folder.mkdir()
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner)
    if owner == 0:  # only root can give a folder away
        os.chown(folder, 12345, -1)
        with pytest.raises(FinJEPAError, match="not a folder of this user"):
            store.cache()


def test_what_is_put_is_got_and_is_not_sent_twice(url, tmp_path):
    files = _written(tmp_path / "a" / "deep", weights="1", config="2") | _written(tmp_path / "b", report="3")
    store = Artifacts(url)
    assert not store.has("checkpoints", "x")
    assert not store.get("checkpoints", "x", tmp_path / "none")
    assert store.put("checkpoints", "x", files) == 3000
    assert store.put("checkpoints", "x", files) == 0
    assert Artifacts(url).get("checkpoints", "x", tmp_path / "there")
    assert {name: path.read_bytes() for name, path in files_of(tmp_path / "there").items()} == {
        name: path.read_bytes() for name, path in files.items()
    }


def test_a_new_version_sends_what_is_new_and_leaves_nothing_of_the_old_one(url, tmp_path):
    store = Artifacts(url)
    store.put("checkpoints", "x", _written(tmp_path / "a", same="1", other="2", gone="3"))
    assert store.put("checkpoints", "x", _written(tmp_path / "b", same="1", other="4")) == 1000
    store.get("checkpoints", "x", tmp_path / "there")
    assert (tmp_path / "there" / "other").read_text() == "4" * 1000
    assert sorted(files_of(tmp_path / "there")) == ["other", "same"]
    assert len(store._fs.find(f"{store._root}/checkpoints/x")) == 3  # two objects and the manifest


def _die_before_the_manifest(url: str, folder: Path) -> None:
    store = Artifacts(url)
    store._write = lambda *_: os._exit(9)  # type: ignore[method-assign]
    store.put("checkpoints", "x", files_of(folder))


@pytest.mark.parametrize("earlier", [False, True])
def test_a_writer_that_is_killed_before_the_manifest_has_changed_nothing(url, tmp_path, earlier):
    store = Artifacts(url)
    if earlier:
        store.put("checkpoints", "x", _written(tmp_path / "before", weights="0"))
    files = _written(tmp_path / "a", weights="1", config="2")
    writer = _SPAWN.Process(target=_die_before_the_manifest, args=(url, tmp_path / "a"))
    writer.start()
    writer.join(60)
    assert writer.exitcode == 9
    assert store.get("checkpoints", "x", tmp_path / "there") == earlier
    if earlier:
        assert (tmp_path / "there" / "weights").read_text() == "0" * 1000
    assert store.put("checkpoints", "x", files) == 0  # the objects had arrived: only the manifest was missing
    shutil.rmtree(tmp_path / "there", ignore_errors=True)
    assert store.get("checkpoints", "x", tmp_path / "there")
    assert (tmp_path / "there" / "weights").read_text() == "1" * 1000


def _write_often(url: str, folder: Path, who: str) -> None:
    store = Artifacts(url)
    for n in range(4):
        store.put("checkpoints", "x", _written(folder / f"{n}", weights=f"{who}{n}", config=f"{who}{n}"))


def test_readers_between_two_writers_always_get_one_of_them_whole(url, tmp_path):
    writers = [_SPAWN.Process(target=_write_often, args=(url, tmp_path / who, who)) for who in "ab"]
    for writer in writers:
        writer.start()
    store, seen = Artifacts(url), set()
    reads = 0
    while any(writer.is_alive() for writer in writers) or not reads:
        there = tmp_path / f"there-{reads}"
        try:
            found = store.get("checkpoints", "x", there)
        except FinJEPAError:  # replaced in every try: nothing came, which is not something in parts
            assert not there.exists()
            continue
        if found:
            weights, config = (there / "weights").read_text(), (there / "config").read_text()
            assert weights == config
            assert len(weights) == 2000
            seen.add(weights[0])
            reads += 1
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen


def test_a_damaged_object_is_one_line(url, tmp_path):
    store = Artifacts(url)
    store.put("checkpoints", "x", _written(tmp_path / "a", weights="1"))
    (place,) = [p for p in store._fs.find(f"{store._root}/checkpoints/x") if p.endswith("weights")]
    store._fs.pipe_file(place, b"2" * 1000)
    with pytest.raises(FinJEPAError, match="weights is damaged") as told:
        store.get("checkpoints", "x", tmp_path / "there")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("wrong", ["nonsense://bucket", "/proc/no/folder/here", "s3://no-such-bucket", "a wrong key"])
def test_what_is_no_store_is_one_line(wrong, tmp_path, monkeypatch, request):
    if wrong.startswith("s3") or " " in wrong:
        request.getfixturevalue("server")
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()  # a connection keeps the keys that it was made with
        request.addfinalizer(s3fs.S3FileSystem.clear_instance_cache)
    if wrong == "a wrong key":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        wrong = f"s3://{BUCKET}/wrong"
    with pytest.raises(FinJEPAError, match=f"FINJEPA_ARTIFACTS={wrong}") as refused:
        Artifacts(wrong).put("checkpoints", "x", _written(tmp_path / "a", weights="1"))
    assert "\n" not in str(refused.value)


def test_a_home_brings_what_another_home_has_kept(url, tmp_path):
    homes = [Settings(home=tmp_path / name, artifacts=url).ensure() for name in "ab"]
    _written(homes[0].checkpoints / "0123456789abcdef", weights="1")
    assert keep(homes[0], homes[0].checkpoints / "0123456789abcdef") == 1000
    assert keep(homes[0], homes[0].checkpoints / "0123456789abcdef") == 0
    assert bring(homes[1], homes[1].checkpoints / "0123456789abcdef")
    assert (homes[1].checkpoints / "0123456789abcdef" / "weights").read_text() == "1" * 1000
    assert not bring(homes[1], homes[1].checkpoints / "fedcba9876543210")
    assert (
        keep(Settings(home=tmp_path / "a"), homes[0].checkpoints / "0123456789abcdef") == 0
    )  # no store, nothing to do
