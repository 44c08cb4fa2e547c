"""A release goes out exactly once, whatever the Hub does; driven with the real Hub client in processes of their own."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finjepa_model import FinJEPA
from finjepa_model.checkpoint import CHECKPOINT_FILES
from finjepa_model.td.training import TDTrainer
from finjepa_pipeline.publishing.gate import judge
from tests.hub_lookalike import READER, WRITER, HubLookalike
from tests.pipeline.backtest.handmade_court import config_for
from tests.pipeline.backtest.handmade_panel import noise, write_panel

ROOT = Path(__file__).parents[3]
REPO = "tester/finjepa"


@pytest.fixture
def hub() -> Iterator[HubLookalike]:
    with HubLookalike() as server:
        yield server


def start(
    home, hub: HubLookalike, *, token: str | None = WRITER, repo: str | None = REPO, **env: str
) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.pipeline.publishing.publisher", str(home.settings.home)]
    environment = hub.client_env(home.settings.home / "hf", token=token) | env
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*command, repo] if repo else command, env=environment, cwd=ROOT, stdout=pipe, stderr=pipe, text=True
    )


def publish(home, hub: HubLookalike, **options) -> dict:
    process = start(home, hub, **options)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert WRITER not in out + err
    return json.loads(out)


def refused(home, hub: HubLookalike, **options) -> str:
    """The error line of a release that must not succeed."""
    process = start(home, hub, **options)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "hf_W" not in err
    assert "hf_R" not in err
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


def releases(hub: HubLookalike) -> list[str]:
    return [commit.title for commit in hub.repo(REPO).commits if commit.title.startswith("Release")]


def assert_released_once(home, hub: HubLookalike) -> None:
    """One commit, its tag on it, its files those of the local folder, one row for each place."""
    (folder,) = home.settings.releases.iterdir()
    repo = hub.repo(REPO)
    assert releases(hub) == [f"Release {folder.name}"]
    commit = next(commit for commit in repo.commits if commit.title.startswith("Release"))
    assert repo.tags == {folder.name: commit.oid}
    assert {name: commit.files[name] for name in CHECKPOINT_FILES} == {
        name: (folder / name).read_bytes() for name in CHECKPOINT_FILES
    }
    rows = home.rows("SELECT target, commit, tag FROM releases ORDER BY target DESC")
    assert rows == [("local", None, folder.name), (f"{hub.endpoint}/{REPO}", commit.oid, folder.name)]


def test_without_a_repository_the_release_is_a_folder_and_a_later_run_publishes_it(champion_home, hub):
    first = publish(champion_home, hub, repo=None)
    folder = Path(first["package"]["folder"])
    assert first["new"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(CHECKPOINT_FILES)
    assert FinJEPA.from_pretrained(folder).config.model.dim == 8
    assert not publish(champion_home, hub, repo=None)["new"]
    assert hub.requests == []
    assert publish(champion_home, hub)["new"]
    assert_released_once(champion_home, hub)


def test_offline_keeps_the_folder_and_fails_nothing(champion_home, hub):
    done = publish(champion_home, hub, HF_HUB_OFFLINE="1")
    assert done["url"] is None
    assert "HF_HUB_OFFLINE" in done["note"]
    assert hub.requests == []
    assert publish(champion_home, hub)["new"]
    assert_released_once(champion_home, hub)


def test_the_same_content_is_released_once(champion_home, hub):
    assert publish(champion_home, hub)["new"]
    asked = len(hub.requests)
    assert not publish(champion_home, hub)["new"]
    assert len(hub.requests) == asked
    assert_released_once(champion_home, hub)


def test_a_home_that_was_deleted_and_made_again_releases_nothing_new(champion_home, hub):
    publish(champion_home, hub)
    shutil.rmtree(champion_home.settings.releases)
    champion_home.rows("DELETE FROM releases")
    champion_home.settings.ensure()
    assert not publish(champion_home, hub)["new"]
    assert len(releases(hub)) == 1


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        (r"POST .*/commit/", {"fault": "lose_answer"}),
        (r"POST .*/commit/", {"fault": "status", "status": 503}),
        (r"POST .*/commit/", {"fault": "status", "status": 429, "headers": {"Retry-After": "1"}}),
        (r"POST .*/commit/", {"fault": "cut"}),
        (r"PUT /lfs-storage", {"fault": "reset"}),
        (r"POST .*/tag/", {"fault": "lose_answer"}),
        (r"POST .*/tag/", {"fault": "status", "status": 500}),
        (r"GET .*/refs", {"fault": "reset", "times": 2}),
        (r"POST /api/repos/create", {"fault": "lose_answer"}),
        (r"POST .*/paths-info/", {"fault": "status", "status": 502}),
    ],
    ids=lambda value: value if isinstance(value, str) else value["fault"] + str(value.get("status", "")),
)
def test_one_release_under_a_fault(champion_home, hub, pattern, fault):
    hub.fail(pattern, **fault)
    publish(champion_home, hub)
    assert_released_once(champion_home, hub)


def test_a_publisher_on_a_stale_parent_looks_again(champion_home, hub):
    hub.add_repo(REPO)
    hub.before_commit = lambda repo: repo.commit("somebody else's commit", {"notes.txt": b"hello"})
    publish(champion_home, hub)
    assert_released_once(champion_home, hub)
    assert hub.repo(REPO).head.files["notes.txt"] == b"hello"


def test_a_publisher_that_was_killed_between_commit_and_tag_is_made_good(champion_home, hub):
    hub.fail(r"POST .*/tag/", "delay", seconds=30.0)
    process = start(champion_home, hub)
    while not any("/tag/" in request for request in hub.requests):
        assert process.poll() is None
    process.kill()
    process.wait()
    assert (len(releases(hub)), hub.repo(REPO).tags) == (1, {})
    publish(champion_home, hub)
    assert_released_once(champion_home, hub)


def test_a_tag_that_stands_elsewhere_is_moved(champion_home, hub):
    first = publish(champion_home, hub)
    repo = hub.repo(REPO)
    repo.tags[first["package"]["tag"]] = repo.commits[0].oid
    champion_home.rows("DELETE FROM releases")
    publish(champion_home, hub)
    assert_released_once(champion_home, hub)


def test_two_publishers_that_race_make_one_release(champion_home, hub, tmp_path):
    hub.add_repo(REPO)
    twin = type(champion_home)(tmp_path / "twin")
    shutil.rmtree(twin.settings.home)
    shutil.copytree(champion_home.settings.home, twin.settings.home)
    racers = [start(champion_home, hub), start(twin, hub)]
    for racer in racers:
        _, err = racer.communicate(timeout=120)
        assert racer.returncode == 0, err
    assert len(releases(hub)) == 1
    assert len(hub.repo(REPO).tags) == 1


@pytest.mark.parametrize(
    ("token", "words"), [(READER, "may not write"), ("hf_RevokedToken00000", "hf auth login"), (None, "hf auth login")]
)
def test_a_refusal_is_one_line_without_the_token(champion_home, hub, token, words):
    hub.add_repo(REPO)
    line = refused(champion_home, hub, token=token)
    assert words in line
    assert "the release stays in" in line
    assert releases(hub) == []
    publish(champion_home, hub)
    assert_released_once(champion_home, hub)


def test_a_hub_that_asks_for_a_long_wait_is_left_for_the_next_run(champion_home, hub):
    hub.fail(r"GET .*/refs", "status", status=429, headers={"Retry-After": "3600"})
    assert "3600 seconds" in refused(champion_home, hub)


def test_a_bad_repository_name_is_named(champion_home, hub):
    assert "not/a/name" in refused(champion_home, hub, repo="not/a/name")


def test_the_td_branch_is_released_with_its_checkpoint_and_decides_the_same(home, hub, tmp_path):
    config = config_for(6)
    td = replace(config.td, enabled=True, steps=4, dates=8, hidden=16, kept_states=256, evaluate_every=2)
    config = replace(config, model=replace(config.model, dim=8, predictor_layers=1), td=td)
    torch.manual_seed(0)
    model = FinJEPA(config)
    model.readout.set(0.1 * torch.randn_like(model.readout.weights_Z), 0.1, 1.0)
    TDTrainer(model, write_panel(tmp_path / "panel", noise(900, 6)), tmp_path / "run").train()
    folder = home.add_checkpoint("aaaa", model=model)
    home.add_backtest("aaaa", 0.0005, strategy="td")
    with home.warehouse.connect() as con:
        assert judge(con, folder, "data1").verdict == "promoted"
    assert publish(home, hub)["new"]

    def decide(checkpoint: str, utility: str) -> dict:
        command = [sys.executable, "-m", "tests.pipeline.publishing.td_decider", checkpoint, utility]
        environment = hub.client_env(tmp_path / "reader", token=READER)
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    bold, shy = ("log_growth - 0.5*variance", "log_growth - 500*variance")
    assert decide(REPO, bold) == decide(str(folder), bold)
    assert decide(REPO, shy) == decide(str(folder), shy)
    assert decide(REPO, bold) != decide(REPO, shy)
