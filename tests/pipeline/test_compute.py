"""Where heavy work runs and what it makes is kept: the same results whoever is killed; an artefact is whole or not there."""

import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline import compute
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.store import Artifacts, bring, files_of, keep
from tests.pipeline.compute_jobs import die, die_once
from tests.pipeline.object_store import BUCKET, object_store
from tests.system.processes import is_alive
from tests.system.product import wait_until

HERE, POOL = (Settings(home=Path("/nowhere"), compute=f"local:{n}") for n in (1, 2))


def test_results_come_in_order_and_a_worker_that_is_killed_costs_its_work_alone(tmp_path, monkeypatch):
    with compute.map(POOL, die_once, [(tmp_path / f"job-{k}", k == 1) for k in (0, 1, 2, 9)]) as results:
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ZeroDivisionError):  # what is raised is raised where its result would be
            next(results)
    assert (tmp_path / "job-1").read_text() == "xx"
    monkeypatch.setattr(compute, "_LOSSES", 1)
    with pytest.raises(FinJEPAError, match="was lost") as told, compute.map(POOL, die, [1, 2]) as results:
        list(results)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_no_worker_outlives_the_process_that_wanted_it(tmp_path, number):
    program = (
        "import sys, pathlib; from finjepa_pipeline import compute; from finjepa_pipeline.settings import Settings;"
        "from tests.pipeline.compute_jobs import sleep\n"
        "if __name__ == '__main__':\n"
        "    settings = Settings(home=pathlib.Path(), compute='local:2')\n"
        "    with compute.map(settings, sleep, [pathlib.Path(sys.argv[1])] * 2) as results:\n"
        "        list(results)\n"
    )
    (tmp_path / "driver.py").write_text(program)
    command = [sys.executable, tmp_path / "driver.py", tmp_path / "worker"]
    driver = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.getcwd()}, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(list(tmp_path.glob("worker-*"))) == 2)
    workers = [int(mark.name.split("-")[1]) for mark in tmp_path.glob("worker-*")]
    driver.send_signal(number)
    driver.wait(timeout=20)
    wait_until(lambda: not any(is_alive(pid) for pid in workers))


def test_a_cluster_that_is_not_there_is_one_line():
    reason = "not installed" if importlib.util.find_spec("ray") is None else "no Ray cluster at"
    nowhere = HERE.model_copy(update={"compute": "127.0.0.1:1"})
    with pytest.raises(FinJEPAError, match=reason) as told, compute.map(nowhere, len, ["a"]):
        pass
    assert "\n" not in str(told.value)


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
