"""The code location: nothing but the list of what the stages define."""

import dagster as dg

from finjepa_pipeline import alerts, automation
from finjepa_pipeline.backtest import assets as backtest
from finjepa_pipeline.features import assets as features
from finjepa_pipeline.prices import assets as prices
from finjepa_pipeline.publishing import assets as publishing
from finjepa_pipeline.settings import SettingsResource
from finjepa_pipeline.training import assets as training
from finjepa_pipeline.warehouse import Warehouse

_STAGES = (prices, features, training, backtest, publishing)

# Steps are forks of one process that has imported all this: else each would spend seconds of a core on it.
_EXECUTOR = dg.multiprocess_executor.configured({"start_method": {"forkserver": {"preload_modules": [__name__]}}})

defs = dg.Definitions(
    assets=automation.with_freshness([asset for stage in _STAGES for asset in stage.ASSETS]),
    jobs=automation.JOBS,
    schedules=automation.SCHEDULES,
    sensors=[*automation.SENSORS, *alerts.SENSORS],
    executor=_EXECUTOR,
    resources={"settings": SettingsResource(), "warehouse": Warehouse()},
)
