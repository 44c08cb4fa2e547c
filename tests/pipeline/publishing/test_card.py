"""A model card says what was found and no more; a release names nothing private, and nothing in it is taken for markup."""

import json
import re
import shlex
import socket
import subprocess
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id
from markdown_it import MarkdownIt

from finjepa_model import FinJEPA, FinJEPAConfig
from finjepa_model.config import ModelConfig
from finjepa_model.features import CHANNELS, MARKET_CHANNELS
from finjepa_model.planner_strategies import WITH_UTILITY, strategy_name
from finjepa_pipeline.publishing.card import model_card
from finjepa_pipeline.publishing.gate import Finding
from finjepa_pipeline.publishing.package import public
from finjepa_pipeline.publishing.release import release

ROOT = Path(__file__).parents[3]


def standing(strategy: str, excess: tuple[float | None, ...] | None, dsr: float | None = None, **more) -> dict:
    """A row of the leaderboard."""
    row = {
        "strategy": strategy, "block": "test", "start_date": date(2020, 1, 2), "end_date": date(2022, 12, 28), "n_days": 750,
        "sharpe": 0.8, "sharpe_low": -0.1, "sharpe_high": 1.7, "annual_return": 0.1, "annual_volatility": 0.15,
        "max_drawdown": -0.2, "annual_turnover": 1.5, "dsr": dsr,
    }  # fmt: skip
    return row | dict(zip(("excess_sharpe", "excess_low", "excess_high"), excess or (None,) * 3, strict=True)) | more


@pytest.fixture
def files(home) -> dict[str, dict]:
    folder = home.add_checkpoint("aaaa")
    names = ("config", "metrics", "lineage", "normalization")
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in names}


@pytest.fixture
def card(files):
    def make(excess=(0.1, -0.2, 0.4), dsr=0.6, *, planner="mppi", validation=None, **more) -> str:
        best = standing("max_diversification", (0.9, 0.1, 1.5), sharpe=1.7)  # a baseline, and the highest ratio
        rows = [best, standing("mppi", excess, dsr), standing("equal_weight", (0.0, 0.0, 0.0))]
        if validation is not None:
            rows.append(standing("mppi", validation, block="validation"))
        return model_card(
            tag="2022-12-28-c0ffee", rows=rows, planner=planner, verdict=["first of all"], **files, **more
        )

    return make


def test_forecasts_of_risk_come_before_what_was_earned_with_their_t_values(card):
    row = {"block": "test", "symbols": "seen", "score": "QLIKE of volatility", "horizon": 21}
    scores = [
        row | {"forecast": "model", "value": 0.3, "t_value": None},
        row | {"forecast": "EWMA", "value": 0.4, "t_value": 3.2},
        row | {"forecast": "HAR with market", "value": 0.31, "t_value": 1.1},
    ]
    dates = {"test": ("2020-01-02", "2022-12-28")}
    text = card(scorecard={"scores": scores, "left_out": [], "dates": dates, "pit": {}, "example": None})
    said = text.partition("## How good its forecasts of risk are")[2].partition("## What it earned")[0]
    assert "2020-01-02 to 2022-12-28: better than EWMA (t +3.2); no different from HAR with market (t +1.1)." in said
    assert "| EWMA | 0.4000 (+3.2) |" in text.partition("## Details")[2]
    assert "How good its forecasts" not in card()


def test_the_metadata_have_the_ratio_of_the_planner_that_acts_and_of_nobody_else(card, tmp_path):
    """The client reads the card as the Hub does: one result, on a data set with a valid id, with its interval."""
    (tmp_path / "README.md").write_text(card(), encoding="utf-8")
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "finjepa", "time-series-forecasting")
    assert yaml.safe_load(card().split("---")[1])["model-index"][0]["name"] == "FinJEPA 2022-12-28-c0ffee"
    [result] = data.eval_results
    assert (result.metric_type, result.metric_value) == ("sharpe", 0.8)
    assert result.metric_name.startswith("net Sharpe ratio a year of mppi, 95 % interval -0.10 to 1.70")
    assert "minus that of 1/N +0.10, 95 % interval -0.20 to 0.40" in result.metric_name
    assert result.dataset_type == "sample"
    assert result.dataset_name == "sample, test block 2020-01-02 to 2022-12-28"


@pytest.mark.parametrize(
    ("source", "build", "dataset"),
    [
        ("hf", {"dataset_name": "owner/prices"}, "owner/prices"),
        ("files", {"path": "/home/me/my prices"}, "files"),
        ("hf", {"dataset_name": "not an id/../x"}, "hf"),
        (None, {}, "prices"),
    ],
)
def test_the_data_set_of_a_result_has_an_id_that_the_hub_takes(card, files, source, build, dataset):
    files["lineage"]["data"]["source"], files["lineage"]["build"] = source, {"source": build}
    [result] = ModelCard(card()).data.eval_results
    validate_repo_id(result.dataset_type)
    assert result.dataset_type == dataset
    assert "/home/me" not in card().split("---")[1]
    assert ModelCard(card(planner="cem")).data.eval_results is None  # without a ratio there is no result


def test_validation_and_test_are_told_apart(card):
    text = card(validation=(0.3, 0.1, 0.5))
    claim, chosen = (text.index(words) for words in ("on the test block from 2020", "On the validation block (2020"))
    assert claim < chosen
    assert "Backtest on the test block, 2020-01-02 to 2022-12-28" in text


def test_that_one_return_is_expected_of_every_asset_is_said_with_the_claim(card, files):
    assert "same return of every asset" not in card()
    files["metrics"]["readout"] = {"weighted": 0.0, "t_value": 0.42}
    text = card()
    assert text.index("same return of every asset") < text.index("## Limits")


@pytest.mark.parametrize(
    ("data", "rules", "ended", "says", "not_says"),
    [
        ({"columns": ["close"]}, {}, (0, 20), ("20 assets ended", "survivors", "one price", "no volumes"), ("impact for",)),
        (
            {"columns": ["adj_close", "close", "high", "low", "open", "volume"], "quarantined_rows": 1200},
            {"allow_short": True},
            (31, 505),
            ("31 of 505 assets ended", "impact for a portfolio of 1,000,000", "1,200 rows"),
            ("survivors", "one price", "no volumes", "short selling"),
        ),
        ({"source": "synthetic", "columns": ["close"]}, {}, (0, 20), ("generated",), ("survivors",)),
        ({"columns": ["close"]}, {"allow_hedge": False}, None, ("is not known", "without a hedge"), ("survivors",)),
        (
            {"columns": ["close", "volume"]}, {"impact": 0.0, "cost_bps": 3.0}, None,
            ("3 basis points", "without market impact"), ("no volumes",),
        ),
    ],
)  # fmt: skip
def test_limits_follow_from_the_prices_and_the_rules(card, files, data, rules, ended, says, not_says):
    files["lineage"]["data"] |= data
    files["config"]["portfolio"] |= rules
    limits = card(ended=ended).split("## Limits")[1].split("## Details")[0]
    assert [words for words in says if words not in limits] == []
    assert [words for words in not_says if words in limits] == []
    assert "3.0 years of test data (750 sessions)" in limits


@pytest.mark.parametrize(
    ("excess", "dsr", "says"),
    [
        ((0.5, 0.2, 0.9), 0.97, "**Evidence of skill**"),
        ((0.5, 0.2, 0.9), 0.90, "**No evidence of skill**"),  # the interval alone is no evidence
        (None, None, "has no Sharpe ratio"),
    ],
)
def test_the_claim_is_that_of_the_leaderboard(card, excess, dsr, says):
    assert says in card(excess, dsr)


def corrections(pbo: float | None, spa_p: float | None) -> dict:
    return {"trials": 57, "effective_trials": 9, "pbo": pbo, "spa_p": spa_p}


def test_corrections_for_all_trials_and_every_check_are_told(card):
    checks = [Finding("data", True, "the price contract holds"), Finding("overfitting", False, "0.71", blocking=False)]
    text = card(checks=checks, corrections=corrections(0.71, 0.4))
    assert "57 configurations were ever tried on some of these sessions" in text
    assert "is 0.60: not convincing" in text
    assert "is 0.71, which is high" in text
    assert "| data | passed | yes | the price contract holds |" in text
    assert "| overfitting | failed | no | 0.71 |" in text
    assert "is 0.96: convincing" in card(dsr=0.96, corrections=corrections(None, None))


def test_one_screen_is_read_and_the_rest_is_folded(card):
    text = card(repository="me/model", corrections=corrections(0.71, 0.4))
    prose, _, details = text.split("---", 2)[2].partition("## Details")
    assert len(prose.split()) < 450
    assert details.count("<details>") == details.count("</details>") == 6
    assert re.sub(r"<details>.*?</details>", "", details, flags=re.S).split() == []
    for found in ("data version: data1", "first of all", "finjepa decide --checkpoint me/model --planner mppi --json"):
        assert found in details
    assert "Whether the source holds companies that were delisted is not known" in prose


def test_the_snippets_of_card_and_readme_run_as_they_are_written(card, tmp_path, monkeypatch, capsys):
    """`owner/name` is a folder here; what it holds is not what the card is about."""
    monkeypatch.chdir(tmp_path)
    channels = tuple(channel.name for channel in CHANNELS if set(channel.needs) <= {"close"})
    market = tuple(channel.name for channel in MARKET_CHANNELS)
    torch.manual_seed(0)
    model = FinJEPA(FinJEPAConfig(model=ModelConfig(channels=channels, market_channels=market, dim=16, heads=2)))
    model.save_pretrained(tmp_path / "owner" / "name")
    days = pd.bdate_range("2018-01-01", periods=500, name="Date")
    closes = 100 * np.exp(np.cumsum(0.01 * np.random.default_rng(0).normal(size=(500, 4)), axis=0))
    pd.DataFrame(closes, days, ["AAPL", "JPM", "KO", "XOM"]).to_csv("prices.csv")
    with_utility = f"qp{WITH_UTILITY}log_growth - 5*variance"
    pages = [(ROOT / name).read_text() for name in ("README.md", "docs/index.md")]
    for text in (*pages, card(planner="qp"), card(planner=with_utility)):
        [code] = re.findall(r"```python\n(.*?)```", text, re.S)
        exec(code, {})
    assert capsys.readouterr().out.count("AAPL") == 8
    assert "utility=" in code


MARKUP = "<img src=x onerror=alert(1)>"
UTILITIES = [
    "log_growth - 5*variance, gross <= 0.8",
    "log_growth - disagreement('a`id`b')",
    "log_growth - disagreement('$(touch x)')",
    'log_growth - disagreement("it\'s; rm x")',
    "log_growth - disagreement('x | tee y')",
    "log_growth - disagreement('<img src=x onerror=alert(1)>')",
    "log_growth - disagreement('/srv/secret_user/models/beside')",
]


def released(home, planner: str, prices: str) -> Path:
    folder = home.add_checkpoint("aaaa")
    lineage = json.loads((folder / "lineage.json").read_text())
    lineage["data"] |= {"feed": f"files:{prices} (AAPL, {MARKUP})", "place": {"deep": [f"read {prices}/a.csv"]}}
    lineage["build"] = {"source": {"data_source": "files", "path": prices}}
    (folder / "lineage.json").write_text(json.dumps(lineage))
    home.add_backtest("aaaa", 0.0005, strategy=planner)
    assert home.judge("aaaa").verdict == "promoted"
    return release(home.settings, home.warehouse, home.champion, None).package.folder


@pytest.mark.parametrize(
    ("planner", "folder"),
    [("mppi", folder) for folder in ("prices", "a|b `c` [x](javascript:1)")]
    + [(strategy_name("mppi", utility), MARKUP) for utility in UTILITIES],
)
def test_a_release_holds_no_path_and_no_markup(home, monkeypatch, planner, folder):
    monkeypatch.setenv("HOME", "/srv/secret_user")
    monkeypatch.setenv("USER", "secret_user")
    made = released(home, planner, f"/srv/secret_user/my data/{folder}")
    private = [b"/srv", b"secret_user", b"my data", str(home.settings.home).encode(), socket.gethostname().encode()]
    for file in made.iterdir():
        content = file.read_bytes()
        assert not [word for word in private if len(word) > 3 and word in content], file
    card = (made / "README.md").read_text()
    assert b"<img" not in (made / "lineage.json").read_bytes()

    page = MarkdownIt("commonmark").enable("table").render(card.split("\n---\n", 1)[1])
    assert "<img" not in page
    assert "javascript:" not in re.findall(r'href="[^"]*"', page)
    for table in re.findall(r"<table>.*?</table>", page, re.S):
        widths = {len(re.findall(r"<t[dh]\b", row)) for row in re.findall(r"<tr>.*?</tr>", table, re.S)}
        assert len(widths) == 1
    shown = re.findall(r"<td>(mppi.*?)</td>", page)
    assert shown
    assert all("<" not in cell for cell in shown)

    [line] = re.findall(r"^finjepa decide .*$", card, re.M)
    words = shlex.split(line)
    searcher, _, utility = planner.partition(" | ")
    assert words[words.index("--planner") + 1] == searcher
    if utility and "/srv" not in utility:
        assert words[words.index("--utility") + 1] == utility
    said = subprocess.run(
        ["bash", "-c", f"finjepa() {{ printf '%s\\n' \"$@\"; }}; {line}"], capture_output=True, text=True
    )
    assert said.stdout.splitlines() == words[1:]
    code = re.search(r"```python\n(.*?)```", card, re.S)
    assert code is not None
    compile(code[1], "card", "exec")


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("files:/data/prices", "files:prices"),
        ("~/prices/a.csv", "a.csv"),
        ("C:\\Users\\me\\prices", "prices"),
        ("hf:owner/name", "hf:owner/name"),
        ("https://hub.example/owner/name", "https://hub.example/owner/name"),
        ("1/N and owner/name, 1 / 2", "1/N and owner/name, 1 / 2"),
        ("/data/*/*.csv", "data"),
    ],
)
def test_paths_give_way_to_their_last_folder(text, made):
    assert public({"a": [text]}, {}) == {"a": [made]}
