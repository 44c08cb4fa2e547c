"""250 nights of a source that gains a day: late, restated, delisted and missing rows, nights that are missed, late or killed, an
upgrade and a new champion. The record says what the backtest says, and its scores are those of an independent script."""

import datetime
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch

from finjepa_model import FinJEPA
from finjepa_model.config import preset
from finjepa_model.data.panel import Panel
from finjepa_model.live_record import chain
from finjepa_model.live_record.scores import Outcomes, gaps
from finjepa_model.live_record.verify import verify
from finjepa_model.planner_strategies import FinJEPAStrategy, MarketImagination
from finjepa_pipeline.backtest.engine import simulate
from finjepa_pipeline.features import build_panel, current_panel
from finjepa_pipeline.prices.derive import UniverseConfig, derive
from finjepa_pipeline.prices.ingest import ingest
from finjepa_pipeline.prices.sources import PriceSourceConfig
from finjepa_pipeline.publishing.daily import make_decision
from finjepa_pipeline.publishing.live_record import record_night, record_of
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.warehouse import Warehouse
from tests.pipeline.backtest.handmade_setup import setup_over
from tests.pipeline.prices.frames import replaced
from tests.pipeline.publishing.conftest import Home
from tests.pipeline.publishing.test_live_record import compare_scores, compared_forecasts, evening
from tests.system.product import ROOT, write_prices

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

NIGHTS = int(os.environ.get("FINJEPA_TEST_NIGHTS", "250"))
FIRST, STRIDE, SYMBOLS = 640, 5, 10
MISSED, HINDSIGHT, SILENT = (20, 150, 151), 30, 70  # nights: without a run; run four days late; without new rows
KILLED = {12: "sleep", 33: "forecasts", 180: "nights"}  # and where
LATE, HALTED, RESTATED, ENDED = ("S01", 40), ("S02", 60), ("S03", 97), ("S04", 120)  # symbol and session after FIRST
UPGRADE, NEW_CHAMPION = 200, 125
CONTRACT = "finjepa_pipeline.prices.contract.judge"


def delivered(market: pl.DataFrame, days: list[str], k: int) -> pl.DataFrame:
    """The source in the night of session FIRST + k."""
    last = FIRST + k - (k == SILENT)
    rows = market.filter(pl.col("date") <= days[last])
    symbol, date = pl.col("symbol"), pl.col("date")
    if k == LATE[1]:
        rows = rows.filter(~((symbol == LATE[0]) & (date == days[FIRST + k])))
    gap = [days[FIRST + HALTED[1] + one] for one in range(3)]
    rows = rows.filter(~((symbol == HALTED[0]) & date.is_in(gap)))
    rows = rows.filter(~((symbol == ENDED[0]) & (date > days[FIRST + ENDED[1]])))
    if k > RESTATED[1] + 2:
        hit = (symbol == RESTATED[0]) & (date == days[FIRST + RESTATED[1]])
        rows = replaced(rows, hit, **{name: pl.col(name) * 1.01 for name in ("close", "adj_close", "high")})
    return rows


def night(home: str, files: str, at: str) -> None:
    """What a nightly run does of it, from the source on."""
    settings = Settings(home=Path(home))
    warehouse = Warehouse.from_settings(settings)
    ingest(warehouse, settings, PriceSourceConfig(data_source="files", path=files))
    derive(warehouse, UniverseConfig())
    with warehouse.connect() as con:
        build_panel(con, settings)
    assert make_decision(settings, warehouse) is not None
    record_night(settings, warehouse, at=datetime.datetime.fromisoformat(at))


def killed_night(where: str, home: str, files: str, at: str) -> None:
    """The same in a process of its own, which is killed while it ingests, with half of its files, or before it scores."""
    stop_at = {"sleep": "nothing", "forecasts": "portfolios", "nights": "scores"}[where]
    program = f"""
import time
from unittest.mock import patch
from finjepa_model.live_record import chain, scores
from tests.pipeline.publishing.test_simulated_nights import CONTRACT, night
write = chain.write_parquet
def slow(frame, file):
    if "{stop_at}" in str(file.relative_to(file.parents[1])):
        print("here", flush=True)
        time.sleep(60)
    write(frame, file)
chain.write_parquet = scores.write_parquet = slow
with patch(CONTRACT, lambda *_: ()):
    print("begun", flush=True)
    night({home!r}, {files!r}, {at!r})
"""
    run = subprocess.Popen([sys.executable, "-W", "ignore", "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert run.stdout.readline() == "begun\n"
    if where == "sleep":
        time.sleep(0.7)
    else:
        assert run.stdout.readline() == "here\n"
    run.send_signal(signal.SIGKILL)
    run.wait()


def test_simulated_nights(tmp_path, monkeypatch):
    monkeypatch.setattr(CONTRACT, lambda *_: ())
    whole = write_prices(tmp_path / "whole", SYMBOLS, FIRST + 250)
    market = pl.read_parquet(whole / "*.parquet")
    days = market["date"].unique().sort().to_list()
    files = tmp_path / "files"
    files.mkdir()
    home = Home(tmp_path / "home")
    sessions = [datetime.date.fromisoformat(day) for day in days]

    def deliver(k: int) -> None:
        delivered(market, days, k).write_parquet(files / "prices.parquet")

    deliver(0)
    settings, warehouse = home.settings, home.warehouse
    ingest(warehouse, settings, PriceSourceConfig(data_source="files", path=str(files)))
    derive(warehouse, UniverseConfig())
    with warehouse.connect() as con:
        panel = Panel.open(build_panel(con, settings))
    config = preset("tiny")
    channels = {"channels": panel.channels, "market_channels": panel.market_channels}
    config = replace(config, model=replace(config.model, stride=STRIDE, dim=8, predictor_layers=1, **channels))
    for seed, name in enumerate(("aaaa", "bbbb")):
        torch.manual_seed(seed)
        model = FinJEPA(config)
        model.readout.set(0.1 * torch.randn_like(model.readout.weights_Z), 0.1, 0.9)
        home.add_checkpoint(name, model=model)
        lineage = settings.checkpoints / name / "lineage.json"
        blocks = {"train": [days[0], days[500]], "validation": [days[520], days[570]], "test": [days[590], days[630]]}
        lineage.write_text(json.dumps(json.loads(lineage.read_text()) | {"blocks": blocks}))
    home.promote("aaaa", "qp", "2000-01-01 00:00:00")
    for k in range(NIGHTS):
        if k in MISSED:
            continue
        deliver(k)
        at = evening(sessions[FIRST + k], 4 if k == HINDSIGHT else 0)
        if k == NEW_CHAMPION:
            home.promote("bbbb", "qp", f"{sessions[FIRST + k]} 20:00:00")
        if k == UPGRADE:  # from a version that had no table of published records
            home.rows("DROP TABLE live_record_releases")
            monkeypatch.setattr(
                "finjepa_pipeline.publishing.live_record.made_with",
                lambda: {"code": {"finjepa": "9.9", "revision": None}},
            )
        if k in KILLED:
            killed_night(KILLED[k], str(settings.home), str(files), at.isoformat())
        night(str(settings.home), str(files), at.isoformat())
    panel = Panel.open(current_panel(settings))
    record = record_of(settings, panel.manifest["feed"])
    _check_nights(record, sessions)
    # those of the panel of the last night, but for the year after a restated price
    passed_over = {FIRST + LATE[1], *range(FIRST + RESTATED[1], FIRST + NIGHTS)}
    assert compared_forecasts(record, panel, settings.checkpoints, passed_over) > min(NIGHTS, RESTATED[1]) * 20
    compare_scores(record, 150)
    _check_book(record, panel, settings)
    assert not verify(record.folder).broken
    size = sum(file.stat().st_size for file in record.folder.rglob("*.parquet"))
    assert size < 40e6


def _check_nights(record: chain.LiveRecord, sessions: list[datetime.date]) -> None:
    """One night a session that was run, the missed ones are gaps, one is hindsight; code and champion change once."""
    nights = record.nights
    run = [k for k in range(NIGHTS) if k not in (*MISSED, SILENT)]
    assert record.sessions == [sessions[FIRST + k] for k in run]
    assert set(gaps(record, Outcomes.of(record))) == {sessions[FIRST + k] for k in (*MISSED, SILENT) if k < NIGHTS - 1}
    assert nights.filter(pl.col("hindsight"))["session"].to_list() == [
        sessions[FIRST + k] for k in (HINDSIGHT,) if k < NIGHTS
    ]
    if NIGHTS > UPGRADE:
        assert nights["checkpoint"].rle().struct.field("value").to_list() == ["aaaa", "bbbb"]
        assert nights["code"].rle().struct.field("value").to_list()[1:] == ["9.9"]
        listed = record.outcomes().filter(pl.col("kind") != "return")
        assert (RESTATED[0], sessions[FIRST + RESTATED[1]]) in listed.select("asset", "session").rows()
        assert set(listed.filter(pl.col("kind") == "ended")["asset"]) == {ENDED[0]}


def _check_book(record: chain.LiveRecord, panel: Panel, settings: Settings) -> None:
    """The wealth of the book is that of the backtest, until a price that it used was restated."""
    config = FinJEPA.from_pretrained(settings.checkpoints / "aaaa").config
    setup = setup_over(panel, config, (FIRST, FIRST + min(LATE[1], NIGHTS)))
    judged = simulate(FinJEPAStrategy("qp", MarketImagination(settings.checkpoints / "aaaa")), setup)
    wealth = dict(record.nights.select("session", "wealth").iter_rows())
    for t, date in enumerate(judged.dates_T.tolist()):
        if date in wealth:
            assert wealth[date] == pytest.approx(judged.wealth_T[t], rel=1e-6)
