"""A live record says what the backtest would have said, scores it as an independent script does, and finds every change."""

import datetime
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Container
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import NormalDist

import dagster as dg
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finjepa_model import FinJEPA
from finjepa_model.data.batches import observe
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.live_record import chain, scores
from finjepa_model.live_record.chain import HORIZONS, LEVELS, QUANTILES, TABLES, LiveRecord
from finjepa_model.live_record.drift import checkpoint_drift, control_charts, drift_of
from finjepa_model.live_record.scores import Outcomes, book_returns, gaps, score_lines
from finjepa_model.live_record.verify import record_folder, verify
from finjepa_model.training.risk_scores import log_score
from finjepa_pipeline.prices.calendar import sessions
from finjepa_pipeline.publishing import assets, daily, live_record
from finjepa_pipeline.publishing.daily import make_decision
from finjepa_pipeline.publishing.live_record import record_night, record_of
from finjepa_pipeline.publishing.release import publish_record
from finjepa_pipeline.report.live_record import RecordSummary, write_record_page
from finjepa_pipeline.settings import SettingsResource
from tests.pipeline.backtest.handmade_panel import write_panel
from tests.pipeline.backtest.handmade_setup import config_for
from tests.pipeline.publishing.conftest import Home

ASSETS, FIRST, NIGHTS, MISSED, LATE_NIGHT = 8, 640, 32, 9, 14
HALTED, LATE, RESTATED, ENDED = 1, 2, 3, 4  # assets: no price for three sessions; one a session late; changed; delisted


class Market:
    """A market of New York's sessions whose panel grows by a session a night."""

    def __init__(self, folder, nights: int = NIGHTS):
        self.folder, self.days = folder, FIRST + nights
        calendar = [day for day in sessions("XNYS") if day >= datetime.date(2012, 6, 1)]
        self.dates = np.array(calendar[: self.days], "datetime64[D]")
        random = np.random.default_rng(5)
        shared, spread = random.normal(0, 0.008, (self.days, 1)), random.uniform(0.008, 0.03, ASSETS)
        self.returns_DA = 0.0003 + shared + spread * random.normal(0, 1, (self.days, ASSETS))

    def night(self, session: int) -> Panel:
        """The panel of the night after a session."""
        days, returns_DA = session + 1, self.returns_DA[: session + 1].copy()
        alive_DA = np.ones((days, ASSETS), bool)
        observed_DA = np.ones((days, ASSETS), bool)
        observed_DA[FIRST + 5 : FIRST + 8, HALTED] = False
        if days == FIRST + 11:  # the session before the newest is not there yet
            observed_DA[-2:, LATE] = False
        if days > FIRST + 15:
            returns_DA[FIRST + 12, RESTATED] += 0.01
        alive_DA[FIRST + 14 :, ENDED] = False
        delisted_A = np.zeros(ASSETS)
        delisted_A[ENDED] = -0.3
        panel = write_panel(
            self.folder / f"panel-{days}", returns_DA, alive_DA=alive_DA, dates_D=self.dates[:days],
            delisting_return_A=delisted_A, eligible_DA=observed_DA & alive_DA,
        )  # fmt: skip
        rows_DA = panel.rows(np.arange(days)[:, None], np.arange(ASSETS)[None])
        seen = np.load(panel.folder / "observed.npy")
        seen[rows_DA[(rows_DA >= 0) & ~observed_DA]] = False
        np.save(panel.folder / "observed.npy", seen)
        return Panel.open(panel.folder)


def evening(day: datetime.date, days: int = 0) -> datetime.datetime:
    return datetime.datetime.combine(day + datetime.timedelta(days=days), datetime.time(23))


def model_for() -> FinJEPA:
    config = config_for(ASSETS)
    config = replace(config, model=replace(config.model, stride=5, dim=8, predictor_layers=1))
    torch.manual_seed(0)
    model = FinJEPA(config)
    model.readout.set(0.1 * torch.randn_like(model.readout.weights_Z), 0.1, 0.9)
    return model


def run_night(home: Home, market: Market, session: int, patch, days_late: int = 0) -> tuple[LiveRecord, bool]:
    folder = market.night(session).folder
    for module in (daily, live_record):
        patch.setattr(module, "current_panel", lambda settings: folder)
        patch.setattr(module, "most_assets", lambda *asked: ASSETS - 2)
    assert make_decision(home.settings, home.warehouse) is not None
    made = record_night(home.settings, home.warehouse, at=evening(market.dates[session].item(), days_late))
    assert made is not None
    return made[0].record, made[1]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A home with a record of `NIGHTS` sessions, one of which was missed and one written too late."""
    market, home = Market(tmp_path_factory.mktemp("market")), Home(tmp_path_factory.mktemp("home") / "home")
    home.add_checkpoint("aaaa", model=model_for())
    home.promote("aaaa", "qp")
    with pytest.MonkeyPatch.context() as patch:
        for k in range(NIGHTS):
            if k != MISSED:
                assert run_night(home, market, FIRST + k, patch, 4 if k == LATE_NIGHT else 0)[1]
        assert not run_night(home, market, FIRST + NIGHTS - 1, patch)[1]
    return market, home, record_of(home.settings, "test")


def test_missed_late_restated_and_delisted_sessions_are_named(recorded):
    market, _, record = recorded
    outcomes = Outcomes.of(record)
    assert gaps(record, outcomes) == [market.dates[FIRST + MISSED].item()]
    hindsight = record.nights.filter(pl.col("hindsight"))["session"].to_list()
    assert hindsight == [market.dates[FIRST + LATE_NIGHT].item()]
    listed = record.outcomes().filter(pl.col("kind") != "return").drop("night").rows()
    before = np.float32(market.returns_DA[FIRST + 12, RESTATED]).item()
    assert listed == [
        ("restated", f"A{RESTATED:03d}", market.dates[FIRST + 12].item(), pytest.approx(before + 0.01), before),
        ("ended", f"A{ENDED:03d}", market.dates[FIRST + 14].item(), -0.3, None),
    ]
    late = outcomes.returns_DA[:, outcomes.place[f"A{LATE:03d}"]]  # it came a session late, and no return is lost
    np.testing.assert_allclose(late, market.returns_DA[FIRST + 1 : FIRST + NIGHTS - 1, LATE], rtol=1e-6)


def test_forecasts_are_those_of_the_backtest_over_the_same_sessions(recorded, tmp_path):
    """Made at once from the last night's prices; of a session whose prices were restated later, from what was known then."""
    market, home, record = recorded
    restated = range(FIRST + 12, FIRST + 16)
    assert compared_forecasts(record, market.night(FIRST + NIGHTS - 1), home.settings.checkpoints, restated) > 400


def compared_forecasts(record: LiveRecord, panel: Panel, checkpoints: Path, passed_over: Container[int]) -> int:
    """How many forecasts of assets are what the models say on a panel, and those of portfolios with them."""
    models = {name: FinJEPA.from_pretrained(checkpoints / name) for name in record.nights["checkpoint"].unique()}
    compared = 0
    for date, checkpoint in record.nights.select("session", "checkpoint").iter_rows():
        session, model = panel.date_index(date), models[checkpoint]
        if session in passed_over:
            continue
        rows = record.table("forecasts", date).filter(pl.col("forecast") == "model")
        assets = rows.filter(pl.col("kind") == "asset")
        numbers_N = np.array([panel.assets.index(name) for name in assets["name"]])
        found = model.forecast_risk(observe(panel, np.array([session]), numbers_N[None], 1, model.config))
        weights = record.table("portfolios", date).pivot("asset", index="portfolio", values="weight").fill_null(0)
        portfolios = rows.filter(pl.col("kind") == "portfolio").join(weights, left_on="name", right_on="portfolio")
        weights_1CN = torch.tensor(portfolios.select(assets["name"].to_list()).to_numpy()).float()[None]
        for horizon in HORIZONS:
            expected_NQ = found.quantiles(LEVELS, horizon)[0].numpy()
            np.testing.assert_allclose(assets.select(QUANTILES[horizon]).to_numpy(), expected_NQ, rtol=1e-4)
            expected_CQ = found.portfolio_quantiles(weights_1CN, LEVELS, horizon)[0].numpy()
            np.testing.assert_allclose(
                portfolios.select(QUANTILES[horizon]).to_numpy(), expected_CQ, rtol=1e-3, atol=1e-6
            )
            covariance_NN = found.covariance(21 if horizon == 21 else 5)[0]
            expected_C = torch.einsum("cn,nm,cm->c", weights_1CN[0], covariance_NN, weights_1CN[0]).sqrt()
            np.testing.assert_allclose(portfolios[f"volatility_{horizon}"], expected_C, rtol=1e-3)
            compared += len(assets)
        assert len(portfolios) >= 13
    return compared


def independent_scores(folder, date, kind, forecast, horizon) -> dict[str, float]:
    """From the files alone, asset by asset, in the words of docs/how-to/live-record.md."""
    nights = pl.read_parquet(folder / "nights.parquet")
    returns: dict[str, dict[datetime.date, float]] = {}
    ended: dict[str, datetime.date] = {}
    days = set()
    for night in nights["session"]:
        for row in pl.read_parquet(folder / "outcomes" / f"{night}.parquet").iter_rows(named=True):
            if row["kind"] == "restated":
                continue
            returns.setdefault(row["asset"], {})[row["session"]] = row["value"]
            if row["kind"] == "ended":
                ended[row["asset"]] = row["session"]
            else:
                days.add(row["session"])
    ahead = sorted(day for day in days if day > date)[:horizon]
    rows = pl.read_parquet(folder / "forecasts" / f"{date}.parquet").filter(pl.col("forecast") == forecast)
    weights = pl.read_parquet(folder / "portfolios" / f"{date}.parquet")
    inside = crps = qlike = logs = n = 0.0
    for row in rows.iter_rows(named=True):
        random = row["name"].startswith("random") or row["name"] in ("1/N", "minimum variance")
        if row["kind"] != {"portfolio": "portfolio", "1/N": "portfolio"}.get(kind, kind) or row["volatility_1"] == 0:
            continue
        if (kind == "portfolio" and not random) or (kind == "1/N" and row["name"] != "1/N"):
            continue
        held = {row["name"]: 1.0}
        if row["kind"] == "portfolio":
            held = dict(weights.filter(pl.col("portfolio") == row["name"]).select("asset", "weight").iter_rows())
        known, outcome, squares, counted = True, 0.0, [], []
        for asset, weight in held.items():
            own = returns.get(asset, {})
            over = asset in ended and ended[asset] <= ahead[-1]
            known &= over or (ahead[-1] in own and sum(day in own for day in ahead) >= 2 * horizon / 3)
            growth = 1.0
            for day in ahead:
                growth *= 1 + own.get(day, 0.0)
            outcome += weight * (growth - 1)
            counted.append([weight * own[day] if day in own else None for day in ahead])
        if not known:
            continue
        daily_returns = [[x for x in one if x is not None or len(held) > 1] for one in zip(*counted, strict=True)]
        squares = [sum(x or 0.0 for x in one) ** 2 for one in daily_returns if one]
        realised, forecast_variance = max(sum(squares) / len(squares), 1e-6), row[f"volatility_{horizon}"] ** 2
        quantiles = [row[name] for name in QUANTILES[horizon]]
        if kind == "market":
            unit = rows.filter(pl.col("kind") == "unit").row(0, named=True)
            quantiles = [row[f"volatility_{horizon}"] * unit[name] for name in QUANTILES[horizon]]
        n += 1
        inside += quantiles[1] < outcome <= quantiles[5]
        edges = [0.0, *[(a + b) / 2 for a, b in itertools.pairwise(LEVELS)], 1.0]
        crps += 2 * sum(
            (edges[q + 1] - edges[q]) * max(level * (outcome - quantile), (level - 1) * (outcome - quantile))
            for q, (level, quantile) in enumerate(zip(LEVELS, quantiles, strict=True))
        )
        qlike += realised / forecast_variance - np.log(realised / forecast_variance) - 1
        variance = horizon * forecast_variance
        logs += -0.5 * (np.log(2 * np.pi * variance) + outcome**2 / variance)
    return {"n": n, "inside": inside, "crps": crps / n, "qlike": qlike / n, "log_score": logs / n}


def test_scores_are_those_of_an_independent_script(recorded):
    assert compare_scores(recorded[2], 60) == {"asset", "market", "portfolio", "1/N"}


def compare_scores(record: LiveRecord, rows: int) -> set[str]:
    """The kinds of forecasts in a record some of whose scores agree."""
    found = pl.read_parquet(record.folder / "scores.parquet").filter(pl.col("n") > 0, pl.col("kind") != "book")
    for row in found.sample(rows, seed=0).iter_rows(named=True):
        key = [row[name] for name in ("session", "kind", "forecast", "horizon")]
        expected = independent_scores(record.folder, *key)
        row["inside"] = sum(row[f"bin_{k}"] for k in range(2, 6))
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-6), (*key, name)
    return set(found["kind"])


def test_lines_count_what_they_sum_up(recorded):
    _, _, record = recorded
    found = pl.read_parquet(record.folder / "scores.parquet")
    for line in score_lines(found):
        rows = found.filter(
            pl.col("kind") == line.kind, pl.col("horizon") == line.horizon, pl.col("forecast") == line.forecast
        )
        assert line.outcomes == rows["n"].sum()
        assert sum(line.bins) == pytest.approx(1)
        assert 0 <= line.coverage[0.5] <= line.coverage[0.9] <= line.coverage[0.98] <= 1
        if line.dates >= 8 * line.horizon:
            assert line.low <= line.coverage[0.9] <= line.high


def test_the_book_is_compared_with_what_it_could_have_held(recorded):
    market, _, record = recorded
    found = book_returns(record, Outcomes.of(record))
    nights = record.nights
    wealth = dict(nights.select("session", "wealth").iter_rows())
    for session, book in zip(found.sessions, found.book, strict=True):
        before = max(day for day in record.sessions if day < session)
        assert book == pytest.approx(wealth[session] / wealth[before] - 1)
    place = found.sessions.index(market.dates[FIRST + MISSED + 1].item())  # over the session that was missed
    names = record.table("portfolios", record.sessions[MISSED - 1]).filter(pl.col("portfolio") == "1/N")["asset"]
    numbers = [int(name[1:]) for name in names]
    two_days = np.prod(1 + market.returns_DA[FIRST + MISSED : FIRST + MISSED + 2, numbers], axis=0) - 1
    assert found.equal[place] == pytest.approx(two_days.mean(), abs=1e-6)


@given(data=st.data())
def test_every_change_is_found(recorded, tmp_path_factory, data):
    """One number, one row, one night, a night put in again, or a score."""
    _, _, record = recorded
    folder = tmp_path_factory.mktemp("changed") / "record"
    shutil.copytree(record.folder, folder)
    night = data.draw(st.sampled_from(record.sessions))
    table = data.draw(st.sampled_from([*TABLES, "nights", "scores", "night", "whole night", "files of a night"]))
    if table in ("night", "whole night", "files of a night"):
        if table != "files of a night":
            LiveRecord(folder).nights.filter(pl.col("session") != night).write_parquet(folder / "nights.parquet")
        if table != "night":
            for name in TABLES:
                (folder / name / f"{night}.parquet").unlink()
    else:
        file = folder / f"{table}.parquet" if table in ("nights", "scores") else folder / table / f"{night}.parquet"
        frame = pl.read_parquet(file)
        if frame.height == 0:
            return
        row, column = data.draw(st.integers(0, frame.height - 1)), data.draw(st.sampled_from(frame.columns))
        if data.draw(st.booleans()):
            changed = frame.filter(pl.int_range(pl.len()) != row)
        else:
            changed = frame.with_columns(
                pl.when(pl.int_range(pl.len()) == row).then(_other(frame, row, column)).otherwise(column).alias(column)
            )
        changed.write_parquet(file)
    assert verify(folder).broken


def _other(frame: pl.DataFrame, row: int, column: str) -> pl.Expr:
    """A value that differs as little as it can."""
    kind, value = frame.schema[column], frame[column][row]
    if value is None:
        value = {pl.String: "", pl.Boolean: False}.get(kind, 0)
    elif kind.is_float():
        value = float(
            np.nextafter(np.float32(value), np.float32(9)) if kind == pl.Float32 else value * (1 + 1e-8) + 1e-12
        )
    elif kind == pl.Boolean:
        value = not value
    elif kind.is_integer():
        value += 1
    elif kind == pl.String:
        value += "x"
    else:
        value += datetime.timedelta(days=1)
    return pl.lit(value).cast(kind)


def test_a_run_that_dies_between_files_leaves_a_record_that_goes_on(tmp_path, monkeypatch):
    market, home = Market(tmp_path / "market", 4), Home(tmp_path / "home")
    home.add_checkpoint("aaaa", model=model_for())
    home.promote("aaaa", "qp")
    run_night(home, market, FIRST, monkeypatch)
    written: list[str] = []
    write = chain.write_parquet

    def dying(frame, file):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(file.name)
        write(frame, file)

    with monkeypatch.context() as patch:
        patch.setattr(chain, "write_parquet", dying)
        with pytest.raises(KeyboardInterrupt):
            run_night(home, market, FIRST + 1, patch)
    record, new = run_night(home, market, FIRST + 2, monkeypatch)  # and the next run is of another session
    assert (new, record.nights.height) == (True, 2)
    assert not verify(record.folder).broken
    with monkeypatch.context() as patch:
        patch.setattr(scores, "write_parquet", dying)
        with pytest.raises(KeyboardInterrupt):  # the night stands, and its scores are not written
            run_night(home, market, FIRST + 3, patch)
    record, new = run_night(home, market, FIRST + 3, monkeypatch)
    assert (new, record.nights.height) == (False, 3)
    assert not verify(record.folder).broken


# -- on the Hub -----------------------------------------------------------------------------------------------------------

REPO = "tester/finjepa"


def first_nights(record: LiveRecord, count: int, folder) -> RecordSummary:
    """The record as it was after its first nights."""
    shutil.copytree(record.folder, folder)
    for session in record.sessions[count:]:
        for table in TABLES:
            (folder / table / f"{session}.parquet").unlink()
    record.nights.head(count).write_parquet(folder / "nights.parquet")
    made = LiveRecord(folder)
    summary = RecordSummary(made, scores.update_scores(made))
    write_record_page(folder / "index.html", summary)
    return summary


def titles(hub, kind="model") -> list[str]:
    return [commit.title for commit in hub.repo(REPO, kind).commits if commit.title.startswith("Live record")]


def test_a_night_is_published_once(recorded, home, hub, tmp_path):
    """Though the answer is lost; what else the Hub may do is tried with releases, which go the same way."""
    summary = first_nights(recorded[2], 2, tmp_path / "record")
    hub.fail(r"POST .*/commit/", "lose_answer")
    made = publish_record(home.warehouse, summary, REPO, "model")
    asked = len(hub.requests)
    assert not publish_record(home.warehouse, summary, REPO, "model").new
    assert len(hub.requests) == asked
    home.rows("DELETE FROM live_record_releases")
    again = publish_record(home.warehouse, summary, REPO, "model")
    assert (again.commit, again.new) == (made.commit, False)
    assert len(titles(hub)) == 1


def test_what_the_hub_did_not_take_is_published_later_with_its_times_beside_what_others_committed(
    recorded, home, hub, tmp_path
):
    _, _, record = recorded
    hub.add_repo(REPO, files={"README.md": b"---\ntags: [x]\n---\n\n# A model\n"})
    publish_record(home.warehouse, first_nights(record, 3, tmp_path / "early"), REPO, "model")
    first = hub.repo(REPO).head
    hub.fail(r"GET .*/refs", "status", status=403)
    later = first_nights(record, 7, tmp_path / "later")
    with pytest.raises(FinJEPAError, match="the next nightly run publishes it"):
        publish_record(home.warehouse, later, REPO, "model")
    hub.before_commit = lambda repo: repo.commit("somebody else's", {"notes.txt": b"hello"})
    publish_record(home.warehouse, later, REPO, "model")
    files = hub.repo(REPO).head.files
    assert len(titles(hub)) == 2
    assert files["notes.txt"] == b"hello"
    assert all(files[path] == content for path, content in first.files.items() if path.count("/") == 2)
    card = files["README.md"].decode()
    assert card.startswith("---\ntags: [x]\n---\n\n# A model\n")
    assert card.count("## Live record since") == 1
    assert later.record.last_hash in card
    assert not re.search(rb'(?:src|href)="(?:https?:)?//', files["index.html"])  # it loads nothing
    place = record_folder(REPO)
    assert LiveRecord(place).nights["written_at"].to_list() == record.nights["written_at"].to_list()[:7]
    assert not verify(place).broken


def test_a_record_that_the_home_does_not_continue_is_left_alone(recorded, home, hub, tmp_path):
    _, _, record = recorded
    publish_record(home.warehouse, first_nights(record, 5, tmp_path / "all"), REPO, "dataset")
    before = hub.repo(REPO, "dataset").head
    assert b"config_name: forecasts" in before.files["README.md"]
    with pytest.raises(FinJEPAError, match="has nights that"):
        publish_record(home.warehouse, first_nights(record, 4, tmp_path / "older"), REPO, "dataset")
    assert hub.repo(REPO, "dataset").head == before


def test_a_record_that_nobody_changed_agrees_by_the_model_package_alone(recorded):
    """As where the pipeline's libraries are not installed."""
    _, _, record = recorded
    program = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"click", "dagster", "duckdb", "pandas", "pyarrow", "plotly", "pydantic", "scipy"}:
            raise ModuleNotFoundError(name=name.partition(".")[0])
sys.meta_path.insert(0, Absent())
from finjepa_pipeline.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program, "verify", record.folder], capture_output=True, text=True)
    assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stderr
    for words in (f"{NIGHTS - 1} nights", "(1 in hindsight, 1 missed)", record.last_hash):
        assert words in done.stdout


# -- drift ----------------------------------------------------------------------------------------------------------------


def scores_of(scale: float, sessions: int = 500, change: int = 250, assets: int = 40) -> pl.DataFrame:
    """Of a model whose volatilities are right until a session and then so many times the right ones; outcomes move together."""
    random, rows = np.random.default_rng(1), []
    normal = np.array([NormalDist().inv_cdf(level) for level in LEVELS])
    for session in range(sessions):
        outcome_R = np.sqrt(0.3) * random.standard_normal() + np.sqrt(0.7) * random.standard_normal(assets)
        for forecast, times in (("model", scale if session >= change else 1.0), ("20-day history", 1.1)):
            bins = np.bincount((times * normal < outcome_R[:, None]).sum(1), minlength=len(scores.BINS)).tolist()
            row = {"session": datetime.date(2020, 1, 1) + datetime.timedelta(session), "horizon": 1, "kind": "asset"}
            row |= {"forecast": forecast, "n": assets, "missing": 0, **dict(zip(scores.BINS, bins, strict=True))}
            rows.append(row | {"log_score": log_score(outcome_R, np.array(times**2)).mean().item()})
    return pl.DataFrame(rows, schema=scores.SCORES)


def test_control_charts_say_when_forecasts_drift_and_hardly_ever_otherwise():
    assert drift_of(scores_of(1.0).head(30))[0] is None
    right = drift_of(scores_of(1.0, sessions=2520))
    assert right == (False, "no alarm in 2520 scored sessions")
    for scale, words in ((0.5, "too narrow"), (2.0, "too wide"), (0.6, "below those of the 20-day history")):
        charts = {chart.drift: chart for chart in control_charts(scores_of(scale))}
        first = next(chart for drift, chart in charts.items() if words in drift).alarms[0]
        assert np.datetime64("2020-01-01") + 250 < first < np.datetime64("2020-01-01") + 250 + 252
        assert drift_of(scores_of(scale))[0] is True


def test_drift_is_of_the_nights_that_a_checkpoint_forecast(recorded):
    _, home, record = recorded
    drifted, words = checkpoint_drift(record.folder.parent, "aaaa")
    assert (drifted, words) == drift_of(pl.read_parquet(record.folder / "scores.parquet"))
    assert drifted is not None
    assert checkpoint_drift(record.folder.parent, "bbbb")[0] is None
    assert checkpoint_drift(home.settings.home / "nowhere", "aaaa") == (None, "it has no live record")


def test_the_page_of_a_decision_says_how_forecasts_came_out(recorded):
    _, home, record = recorded
    pages = sorted((home.settings.reports / "decisions").glob("*.html"))
    words = pages[-1].read_text()
    assert "20-day history" in words
    assert f"since {record.sessions[0]} 90 % intervals held" in words
    assert "20-day history" not in pages[0].read_text()


def test_an_asset_that_trades_again_has_no_outcome_before_it_does():
    days = np.datetime64("2020-01-01") + np.arange(6)
    returns_DA = np.array([[0.1], [np.nan], [np.nan], [np.nan], [0.2], [0.3]])
    outcomes = Outcomes(days, {"A": 0}, returns_DA, np.array([2]))

    def known(after: int, horizon: int) -> bool:
        window = outcomes.window(days[after].item(), horizon, ["A"])
        assert window is not None
        return bool(window[1][0])

    assert [known(0, 1), known(1, 1), known(2, 1), known(3, 1)] == [False, True, False, True]
    assert known(0, 3)  # it ended within
    assert not known(2, 2)  # one session of two is known
    assert outcomes.window(days[4].item(), 2, ["A"]) is None  # not over yet


# -- in Dagster -----------------------------------------------------------------------------------------------------------


def test_a_run_writes_checks_and_publishes_a_night_once(tmp_path, hub, monkeypatch):
    market, home = Market(tmp_path / "market", 3), Home(tmp_path / "home")
    home.add_checkpoint("aaaa", model=model_for())
    home.promote("aaaa", "qp")
    resources = {"settings": SettingsResource(home=str(home.settings.home)), "warehouse": home.warehouse}
    config = {"ops": {"live_record_release": {"config": {"repo_id": REPO, "repo_type": "dataset"}}}}
    monkeypatch.setattr(live_record, "most_assets", lambda *asked: ASSETS)
    for k, times in ((0, 1), (1, 2), (2, 1)):
        panel = market.night(FIRST + k)
        for name in ("panels", "reports"):
            (home.settings.home / name).mkdir(exist_ok=True)
        shutil.copytree(panel.folder, home.settings.panels / panel.folder.name)
        (home.settings.panels / "current.json").write_text(json.dumps({"panel": panel.folder.name}))
        monkeypatch.setattr(live_record, "now", partial(evening, market.dates[FIRST + k].item()))
        for _ in range(times):
            done = dg.materialize(
                [assets.live_record, assets.live_record_release], resources=resources, run_config=config
            )
            assert done.success
    checks = {one.check_name: one for one in done.get_asset_check_evaluations()}
    assert checks["chain"].passed
    assert checks["complete"].passed
    assert (checks["calibrated"].passed, checks["calibrated"].severity) == (False, dg.AssetCheckSeverity.WARN)
    [made] = done.asset_materializations_for_node("live_record")
    assert made.metadata["nights"].value == 3
    assert "No forecast has an outcome" not in made.metadata["words"].value
    assert len(titles(hub, "dataset")) == 3
    assert not verify(record_folder(REPO)).broken
