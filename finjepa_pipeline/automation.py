"""Jobs and schedules. The CLI runs these same jobs in process."""

import dagster as dg

from finjepa_pipeline.backtest.assets import audit
from finjepa_pipeline.settings import Settings

PRICES = dg.AssetSelection.groups("prices").materializable()
MODEL = dg.AssetSelection.groups("features", "model")
AUDIT = dg.AssetSelection.checks(audit)
BACKTEST = dg.AssetSelection.groups("backtest") - AUDIT  # a trial takes minutes, and is held when it is asked for
PUBLISHING = dg.AssetSelection.groups("publishing") - dg.AssetSelection.assets("past_decisions")

nightly = dg.define_asset_job(
    "nightly",
    selection=PRICES | MODEL | BACKTEST | PUBLISHING,
    description="Everything, from the price source to the release and the decision for the next session.",
    tags={"finjepa/why": "nightly", "dagster/priority": "10"},
)
JOBS = [
    nightly,
    dg.define_asset_job("ingest", selection=PRICES, description="Prices to validated tables."),
    dg.define_asset_job("train", selection=PRICES | MODEL, description="Prices to a checkpoint."),
    dg.define_asset_job("backtest", selection=BACKTEST, description="Planners and baselines through history."),
    dg.define_asset_job("audit", selection=AUDIT, description="The null, planted, leak, delay and permutation tests."),
    dg.define_asset_job(
        "publish", selection=dg.AssetSelection.assets("champion", "hub_release"), description="Gate and release."
    ),
    dg.define_asset_job(
        "decide", selection=dg.AssetSelection.assets("daily_decision"), description="The decision for a date."
    ),
]

nightly_schedule = dg.ScheduleDefinition(
    name="nightly_schedule",
    job=nightly,
    cron_schedule=Settings.from_env().nightly_cron,
    execution_timezone="America/New_York",
    description="After the New York close on weekdays; a night without new prices makes nothing twice.",
)
SCHEDULES = [nightly_schedule]
