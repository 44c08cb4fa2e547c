"""The prices stage as Dagster sees it: lineage, metadata, blocking checks and the sensor."""

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from finjepa_pipeline.automation import price_source_sensor
from finjepa_pipeline.definitions import defs
from finjepa_pipeline.prices.assets import ASSETS, price_source
from finjepa_pipeline.prices.contract import docs_page
from finjepa_pipeline.settings import SettingsResource
from tests.pipeline.prices.conftest import Home
from tests.pipeline.prices.frames import prices


def resources(home: Home) -> dict[str, Any]:
    return {"settings": SettingsResource(home=str(home.settings.home)), "warehouse": home.warehouse}


def materialize(home: Home, **config: Any) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        ASSETS,
        resources=resources(home),
        run_config={"ops": {"ingest_prices": {"config": {"data_source": "files", "path": str(home.files), **config}}}},
        raise_on_error=False,
    )


def test_the_second_run_says_that_nothing_is_new_and_a_bad_batch_blocks(home: Home) -> None:
    home.write("part.parquet", prices())
    first, again = materialize(home), materialize(home)
    assert first.success
    made = {event.asset_key.to_user_string(): event for event in again.get_asset_materialization_events()}
    assert made["prices"].materialization.metadata["new_rows"].value == 0
    page = (home.settings.reports / "prices.html").read_text(encoding="utf-8")
    assert 'name="viewport"' in page
    assert all(f'<div class="figure" id="{chart}">' in page for chart in ("coverage", "revisions"))
    checks = {check.check_name: check.passed for check in first.get_asset_check_evaluations()}
    assert checks["price_contract"]
    docs = docs_page(home.settings.home / "contract").parent
    assert _statuses(docs) == {"Succeeded"}
    shutil.rmtree(docs)  # as if the process had been killed before it wrote them
    assert materialize(home).success
    assert _statuses(docs) == {"Succeeded"}
    home.write("part.parquet", prices().with_columns(pl.lit(-1.0).alias("close")))
    refused = materialize(home)
    assert _statuses(docs) == {"Failed"}
    assert not refused.success
    assert [check.passed for check in refused.get_asset_check_evaluations()] == [False]
    assert home.query("SELECT count(*) FROM prices") == [(120,)]


def _statuses(docs: Path) -> set[str]:
    """What the pages of the validations in the Data Docs say of them."""
    assert (docs / "index.html").is_file()
    pages = [page.read_text(encoding="utf-8") for page in docs.glob("validations/**/*.html")]
    assert len(pages) == 1
    return {word for word in ("Succeeded", "Failed") if re.search(rf"Status:.{{0,400}}{word}", pages[0], re.DOTALL)}


def test_the_version_of_files_moves_if_and_only_if_their_content_does(home: Home) -> None:
    def observed() -> str | None:
        job = dg.define_asset_job("observe", [price_source])
        house = dg.Definitions([price_source], jobs=[job], resources=resources(home))
        (seen,) = house.resolve_job_def("observe").execute_in_process().asset_observations_for_node("price_source")
        return seen.data_version

    place = home.write("part.parquet", prices())
    home.ingest()
    first = observed()
    assert first == hashlib.sha256(hashlib.sha256(place.read_bytes()).hexdigest().encode()).hexdigest()
    place.touch()
    place.rename(home.files / "renamed.parquet")
    assert observed() == first
    home.write("renamed.parquet", prices().with_columns(pl.col("volume") + 1))
    assert observed() != first
    home.write("renamed.parquet", prices())
    assert observed() == first


def test_an_old_newest_session_blocks_where_freshness_is_asked_for(home: Home) -> None:
    home.write("part.parquet", prices())
    stale = materialize(home, max_age_sessions=1)
    assert not stale.success or stale.get_asset_materialization_events()[-1].asset_key != dg.AssetKey("universe")
    assert materialize(home).success


def test_the_sensor_starts_an_ingestion_once_when_the_source_moves(home: Home) -> None:
    def tick(cursor: str | None) -> Any:
        with dg.build_sensor_context(cursor=cursor, resources=resources(home), definitions=defs) as context:
            return price_source_sensor.evaluate_tick(context)

    assert not tick(None).run_requests  # an empty home
    home.write("part.parquet", prices())
    home.ingest()
    assert not tick(None).run_requests
    home.write("more.parquet", prices(("DDD",)))
    moved = tick(None)
    assert len(moved.run_requests or ()) == 1
    assert not tick(moved.cursor).run_requests
