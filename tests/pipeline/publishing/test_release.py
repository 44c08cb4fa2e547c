"""A release goes out exactly once, whatever the Hub does; driven with the real Hub client."""

import multiprocessing
import shutil
from dataclasses import replace

import pytest
import torch
from huggingface_hub import constants

from finjepa_model import FinJEPA
from finjepa_model.checkpoint import CHECKPOINT_FILES
from finjepa_model.errors import FinJEPAError
from finjepa_model.td.training import TDTrainer
from finjepa_pipeline.publishing.release import Release, plan_release, release
from tests.hub_lookalike import READER, HubLookalike
from tests.pipeline.backtest.handmade_panel import noise, write_panel
from tests.pipeline.backtest.handmade_setup import config_for

REPO = "tester/finjepa"


def publish(home, repo: str | None = REPO) -> Release:
    return release(home.settings, home.warehouse, home.champion, repo)


def process(home):
    """The same in a process of its own, which has the look-alike's address by being forked."""
    made = multiprocessing.get_context("fork").Process(target=publish, args=(home,))
    made.start()
    return made


def releases(hub: HubLookalike) -> list[str]:
    return [commit.title for commit in hub.repo(REPO).commits if commit.title.startswith("Release")]


def assert_released_once(home, hub: HubLookalike) -> None:
    """One commit, its tag on it, its files those of the local folder, one row for each place."""
    (folder,) = home.settings.releases.iterdir()
    repo = hub.repo(REPO)
    assert releases(hub) == [f"Release {folder.name}"]
    commit = next(commit for commit in repo.commits if commit.title.startswith("Release"))
    assert repo.tags == {folder.name: commit.oid}
    for name in CHECKPOINT_FILES:
        assert commit.files[name] == (folder / name).read_bytes(), name
    rows = home.rows("SELECT target, commit, tag FROM releases ORDER BY target DESC")
    assert rows == [("local", None, folder.name), (f"{hub.endpoint}/{REPO}", commit.oid, folder.name)]


def test_without_a_repository_or_offline_it_is_a_folder_and_a_later_run_publishes_it_once(
    champion_home, hub, monkeypatch
):
    first = publish(champion_home, repo=None)
    folder = first.package.folder
    assert first.new
    assert sorted(path.name for path in folder.iterdir()) == sorted(CHECKPOINT_FILES)
    assert FinJEPA.from_pretrained(folder).config.model.dim == 8
    assert not publish(champion_home, repo=None).new
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        offline = publish(champion_home)
        assert offline.url is None
        assert "HF_HUB_OFFLINE" in offline.note
    assert hub.requests == []
    assert "would get one commit" in plan_release(champion_home.settings, champion_home.champion, REPO)
    assert publish(champion_home).new
    asked = len(hub.requests)
    assert not publish(champion_home).new
    assert len(hub.requests) == asked
    assert "has it already" in plan_release(champion_home.settings, champion_home.champion, REPO)
    assert_released_once(champion_home, hub)


def test_a_home_that_was_deleted_and_made_again_releases_nothing_new(champion_home, hub):
    publish(champion_home)
    shutil.rmtree(champion_home.settings.releases)
    champion_home.rows("DELETE FROM releases")
    champion_home.settings.ensure()
    assert not publish(champion_home).new
    assert len(releases(hub)) == 1


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        (r"POST .*/commit/", {"fault": "lose_answer"}),
        (r"POST .*/commit/", {"fault": "status", "status": 503}),
        (r"POST .*/commit/", {"fault": "status", "status": 429, "headers": {"Retry-After": "1"}}),
        (r"PUT /lfs-storage", {"fault": "reset"}),
        (r"POST .*/tag/", {"fault": "lose_answer"}),
        (r"GET .*/refs", {"fault": "reset", "times": 2}),
        (r"POST /api/repos/create", {"fault": "lose_answer"}),
    ],
    ids=lambda value: value if isinstance(value, str) else value["fault"] + str(value.get("status", "")),
)
def test_one_release_under_a_fault(champion_home, hub, pattern, fault):
    hub.fail(pattern, **fault)
    publish(champion_home)
    assert_released_once(champion_home, hub)


def test_a_publisher_on_a_stale_parent_looks_again(champion_home, hub):
    hub.add_repo(REPO)
    hub.before_commit = lambda repo: repo.commit("somebody else's commit", {"notes.txt": b"hello"})
    publish(champion_home)
    assert_released_once(champion_home, hub)
    assert hub.repo(REPO).head.files["notes.txt"] == b"hello"


def test_a_publisher_that_was_killed_between_commit_and_tag_is_followed_by_one_that_goes_on(champion_home, hub):
    hub.fail(r"POST .*/tag/", "delay", seconds=30.0)
    killed = process(champion_home)
    while not any("/tag/" in request for request in hub.requests):
        assert killed.is_alive()
    killed.kill()
    killed.join()
    assert (len(releases(hub)), hub.repo(REPO).tags) == (1, {})
    publish(champion_home)
    assert_released_once(champion_home, hub)


def test_a_tag_that_stands_elsewhere_is_moved(champion_home, hub):
    tag = publish(champion_home).package.tag
    hub.repo(REPO).tags[tag] = hub.repo(REPO).commits[0].oid
    champion_home.rows("DELETE FROM releases")
    publish(champion_home)
    assert_released_once(champion_home, hub)


def test_two_publishers_that_race_make_one_release(champion_home, hub, tmp_path):
    hub.add_repo(REPO)
    twin = type(champion_home)(tmp_path / "twin")
    shutil.rmtree(twin.settings.home)
    shutil.copytree(champion_home.settings.home, twin.settings.home)
    racers = [process(home) for home in (champion_home, twin)]
    for racer in racers:
        racer.join(120)
    assert [racer.exitcode for racer in racers] == [0, 0]
    assert len(releases(hub)) == 1
    assert len(hub.repo(REPO).tags) == 1


@pytest.mark.parametrize(
    ("token", "words"), [(READER, "may not write"), ("hf_RevokedToken00000", "hf auth login"), (None, "hf auth login")]
)
def test_a_refusal_is_one_line_without_the_token(champion_home, hub, monkeypatch, token, words):
    hub.add_repo(REPO)
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", token) if token else patch.delenv("HF_TOKEN")
        with pytest.raises(FinJEPAError, match=words) as refused:
            publish(champion_home)
    line = str(refused.value)
    assert "the release stays in" in line
    assert "hf_R" not in line
    assert len(line.splitlines()) == 1
    assert releases(hub) == []
    publish(champion_home)
    assert_released_once(champion_home, hub)


@pytest.mark.parametrize(
    ("repo", "fault", "words"),
    [(REPO, {"status": 429, "headers": {"Retry-After": "3600"}}, "3600 seconds"), ("not/a/name", None, "not/a/name")],
)
def test_a_hub_that_asks_for_a_long_wait_and_a_bad_name_are_refused(champion_home, hub, repo, fault, words):
    if fault:
        hub.fail(r"GET .*/refs", "status", **fault)
    with pytest.raises(FinJEPAError, match=words):
        publish(champion_home, repo)


@pytest.mark.slow
def test_the_td_branch_is_released_with_its_checkpoint(home, hub, tmp_path):
    config = config_for(6)
    td = replace(config.td, enabled=True, steps=2, dates=8, hidden=16, kept_states=256, evaluate_every=2)
    config = replace(config, model=replace(config.model, dim=8, predictor_layers=1), td=td)
    torch.manual_seed(0)
    model = FinJEPA(config)
    TDTrainer(model, write_panel(tmp_path / "panel", noise(900, 6)), tmp_path / "run").train()
    home.add_checkpoint("aaaa", model=model)
    home.add_backtest("aaaa", 0.0005, strategy="td")
    assert home.judge("aaaa").verdict == "promoted"
    loaded = FinJEPA.from_pretrained(publish(home).package.folder).state_dict()
    assert any(name.startswith("td") for name in loaded)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded[name], value), name
