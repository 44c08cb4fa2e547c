"""A model card says what was found and no more, and its metadata is what the Hub wants."""

import json
from datetime import date

import pytest
import yaml
from huggingface_hub import ModelCard

from finjepa_pipeline.publishing.card import Corrections, Standing, model_card
from finjepa_pipeline.publishing.checks import Finding


def standing(strategy: str, excess: tuple[float, float, float] | None, dsr: float | None = None) -> Standing:
    sharpe, low, high = excess or (None, None, None)
    return Standing(
        strategy, "test", date(2020, 1, 2), date(2022, 12, 28), 0.8, -0.1, 1.7, 0.1, 0.15, -0.2, 1.5, sharpe, low, high, 750,
        "data1", dsr,
    )  # fmt: skip


@pytest.fixture
def card(home):
    folder = home.add_checkpoint("aaaa")
    files = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in ("config", "metrics", "lineage", "normalization")
    }

    def make(excess: tuple[float, float, float] | None = (0.1, -0.2, 0.4), dsr: float | None = 0.6, **more) -> str:
        rows = [standing("mppi", excess, dsr), standing("equal_weight", (0.0, 0.0, 0.0))]
        return model_card(
            tag="2022-12-28-c0ffee", standings=rows, planner="mppi", verdict=["first of all"], **files, **more
        )

    return make


def test_metadata_is_what_the_hub_wants(card):
    text = card()
    data = ModelCard(text).data
    assert data.license == "apache-2.0"
    assert data.library_name == "finjepa"
    assert data.pipeline_tag == "time-series-forecasting"
    assert {result.metric_type for result in data.eval_results} == {"sharpe"}
    assert yaml.safe_load(text.split("---")[1])["model-index"][0]["name"] == "FinJEPA 2022-12-28-c0ffee"


@pytest.mark.parametrize(
    ("excess", "dsr", "says"),
    [
        ((0.1, -0.2, 0.4), 0.99, "**No evidence of skill**"),
        ((-0.5, -0.9, -0.1), 0.01, "**Worse than 1/N**"),
        ((0.5, 0.2, 0.9), 0.97, "**Evidence of skill**"),
        ((0.5, 0.2, 0.9), 0.90, "**No evidence of skill**"),  # the interval alone is no evidence
        ((0.5, 0.2, 0.9), None, "**No evidence of skill**"),
        (None, None, "has no Sharpe ratio"),
    ],
)
def test_the_claim_asks_for_the_interval_and_the_deflated_ratio(card, excess, dsr, says):
    text = card(excess, dsr)
    assert says in text
    assert ("**Evidence of skill**" in text) == (says == "**Evidence of skill**")


def test_corrections_for_all_trials_and_every_check_are_told(card):
    checks = [Finding("data", True, "the price contract holds"), Finding("overfitting", False, "0.71", blocking=False)]
    text = card(checks=checks, corrections=Corrections(57, 9, 0.71, 0.4))
    assert "57 configurations were ever tried on some of these sessions" in text
    assert "is 0.60: not convincing" in text
    assert "is 0.71, which is high" in text
    assert "| data | passed | yes | the price contract holds |" in text
    assert "| overfitting | failed | no | 0.71 |" in text
    assert "is 0.96: convincing" in card(dsr=0.96, corrections=Corrections(57, 9, None, None))


def test_provenance_limits_and_use_are_there(card):
    text = card()
    for section in (
        "What it earned",
        "How to use it",
        "Why it was released",
        "What it learned from",
        "How it was made",
        "Limits",
    ):
        assert f"## {section}" in text
    assert "data version: data1" in text
    assert "survivors" in text
    assert 'act("owner/name", planner="mppi")' in text
