"""The made-up market as a source: its size is part of what it is, and comes back from what an ingestion stores."""

import json
from pathlib import Path

import pytest

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.prices.sources import PriceSourceConfig, make_feed
from finjepa_pipeline.settings import Settings


def _source(tmp_path: Path, **options):
    feed = make_feed(PriceSourceConfig(data_source="synthetic", **options), Settings(home=tmp_path))
    assert feed is not None
    return feed.source


def test_another_size_is_another_market_and_is_remembered(tmp_path: Path):
    usual, wide = _source(tmp_path, synthetic_seed=3), _source(tmp_path, synthetic_seed=3, synthetic_assets=7)
    assert usual.snapshot().version != wide.snapshot().version
    assert usual.place == "synthetic:drift:3"
    assert wide.place == "synthetic:drift:3:assets=7"
    options = json.loads(json.dumps(wide.options))
    again = make_feed(PriceSourceConfig(**options), Settings(home=tmp_path))
    assert again is not None
    assert again.source == wide


def test_the_usual_size_may_be_said(tmp_path: Path):
    said = _source(tmp_path, synthetic_assets=20, synthetic_sessions=2520)
    assert said.snapshot() == _source(tmp_path).snapshot()


def test_a_size_belongs_to_the_made_up_market(tmp_path: Path):
    with pytest.raises(FinJEPAError, match="synthetic"):
        make_feed(PriceSourceConfig(data_source="sample", synthetic_assets=5), Settings(home=tmp_path))
