"""Jobs, the nightly schedule, and the sensor of the source. The CLI runs these same jobs in process."""

import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
import yaml
from dagster_shared.yaml_utils import load_run_config_yaml

from finjepa_model.config import preset
from finjepa_model.errors import FinJEPAError, did_you_mean
from finjepa_pipeline.alerts import Alert, send
from finjepa_pipeline.backtest.blocks import parse_names, parse_planners
from finjepa_pipeline.backtest.strategies import CONTROLS
from finjepa_pipeline.prices.calendar import sessions
from finjepa_pipeline.prices.ingest import source_moved
from finjepa_pipeline.prices.sources import DEFAULT_CALENDAR
from finjepa_pipeline.runs import CRASH_RETRIES
from finjepa_pipeline.settings import Settings, SettingsResource
from finjepa_pipeline.warehouse import Warehouse

PRICES = dg.AssetSelection.groups("prices").materializable()
SWEEP = dg.AssetSelection.assets("model_sweep")
MODEL = dg.AssetSelection.groups("features", "model") - SWEEP
BACKTEST = dg.AssetSelection.groups("backtest")
AUDIT = dg.AssetSelection.assets("leakage_audit")
RELEASE = dg.AssetSelection.assets("challenger_audit", "champion", "hub_release")
PUBLISHING = dg.AssetSelection.groups("publishing")

_WHY, _NIGHTLY = "finjepa/why", {"finjepa/night": "one at a time"}  # dagster.yaml limits runs by the second tag
_HOUR_S = 3600


def _job(name: str, selection: dg.AssetSelection, description: str, hours: int, priority: int = 0, **tags: str) -> Any:
    """A job that is ended after `hours`, and whose steps are tried again when their process died."""
    limits = {dg.MAX_RUNTIME_SECONDS_TAG: str(hours * _HOUR_S), "dagster/priority": str(priority)}
    return dg.define_asset_job(
        name, selection, description=description, tags=limits | tags, op_retry_policy=CRASH_RETRIES
    )


nightly = _job(
    "nightly",
    PRICES | MODEL | BACKTEST | PUBLISHING,
    "Everything, from the price source to the release and the decision for the next session.",
    hours=12,
    priority=10,
    **_NIGHTLY,
)
JOBS = [
    nightly,
    _job("ingest", PRICES, "Prices to validated tables.", hours=2, priority=5),
    _job("train", PRICES | MODEL, "Prices to a checkpoint.", hours=12),
    _job("train_and_release", PRICES | MODEL | BACKTEST | RELEASE, "Prices to a release.", hours=12),
    _job("sweep", SWEEP, "An ablation grid or an ensemble on the panel that is there.", hours=48),
    _job("backtest", BACKTEST, "Planners and baselines through history.", hours=6),
    _job("walk_forward_job", dg.AssetSelection.assets("walk_forward"), "One model a fold, through history.", hours=48),
    _job("audit", AUDIT, "The leakage, null-market, known-truth, delay and permutation tests.", hours=6),
    _job("publish", RELEASE, "The audit of the challenger, gate and release.", hours=2, priority=5),
    _job("decide", dg.AssetSelection.assets("daily_decision"), "The decision for a date.", hours=1, priority=5),
]


@dg.schedule(
    name="nightly_schedule",
    job=nightly,
    cron_schedule=Settings.from_env().nightly_cron,
    execution_timezone="America/New_York",
    description="After the New York close, on days on which it traded. Without new prices, after a run that succeeded, it "
    "starts nothing and gives the reason.",
)
def nightly_schedule(
    context: dg.ScheduleEvaluationContext, settings: SettingsResource, warehouse: Warehouse
) -> dg.RunRequest | dg.SkipReason:
    tick = context.scheduled_execution_time
    day = tick.date()
    if day not in sessions(DEFAULT_CALENDAR):
        return dg.SkipReason(f"{day} is no session of {DEFAULT_CALENDAR}")
    home = settings.get()
    why = f"the close of {day}"
    try:
        moved = source_moved(warehouse, home)
        if moved is None and _last_run_succeeded(context.instance):
            return dg.SkipReason(f"no new prices by {tick:%Y-%m-%d %H:%M}, and the last run succeeded: nothing to do")
    except FinJEPAError as error:  # the run reports the same where a person looks for it, and alerts
        why += f", although the source cannot be looked at: {error}"
    try:
        return _request(context, home, tick.isoformat(), why)
    except FinJEPAError as error:  # no run comes of it that could fail, and alert
        send(home, Alert(f"FinJEPA {nightly.name} did not start: {error}", "failure", nightly.name))
        raise


@dg.sensor(
    name="price_source_sensor",
    job_name="nightly",
    minimum_interval_seconds=900,
    description="Starts a nightly run when the source of the prices has moved; content that is known is not ingested again.",
)
def price_source_sensor(
    context: dg.SensorEvaluationContext, settings: SettingsResource, warehouse: Warehouse
) -> dg.RunRequest | dg.SkipReason:
    try:
        moved = source_moved(warehouse, settings.get())
    except FinJEPAError as error:
        return dg.SkipReason(str(error))
    if moved is None or context.cursor == moved:
        return dg.SkipReason("the source is where it was")
    context.update_cursor(moved)
    return _request(context, settings.get(), moved, f"the source moved to {moved[:12]}")


def _request(
    context: dg.ScheduleEvaluationContext | dg.SensorEvaluationContext, settings: Settings, run_key: str, why: str
) -> dg.RunRequest:
    assert context.repository_def is not None  # that of the code location
    config = nightly_config(settings, context.repository_def.get_job(nightly.name))
    return dg.RunRequest(run_key=run_key, tags={_WHY: why[:250]}, run_config=config)


def _last_run_succeeded(instance: dg.DagsterInstance) -> bool:
    runs = instance.get_run_records(dg.RunsFilter(job_name=nightly.name), limit=1)
    return bool(runs) and runs[0].dagster_run.status == dg.DagsterRunStatus.SUCCESS


# Between two nightly runs lie a day, a weekend, or one with a holiday: a warning after the first two that were missed.
_FRESH = dg.FreshnessPolicy.time_window(
    warn_window=datetime.timedelta(days=4, hours=6), fail_window=datetime.timedelta(days=6)
)
_NIGHTLY_ASSETS = (
    "prices", "feature_panel", "world_model", "leaderboard", "champion", "hub_release", "daily_decision", "live_record",
)  # fmt: skip


def with_freshness(assets: Sequence[Any]) -> list[Any]:
    """The assets, with a policy on what every nightly run makes or finds made: the UI shows when such runs have stopped."""

    def fresh(spec: dg.AssetSpec) -> dg.AssetSpec:
        return dg.apply_freshness_policy(spec, _FRESH) if spec.key.to_user_string() in _NIGHTLY_ASSETS else spec

    return [asset.map_asset_specs(fresh) if isinstance(asset, dg.AssetsDefinition) else asset for asset in assets]


# Run config that a person wrote


def nightly_config(settings: Settings, job: dg.JobDefinition) -> dict[str, Any]:
    """Run config of a nightly run, the `job`: `nightly.yaml` in the home, or the defaults where it is empty or there is none.
    Raises where that file is not YAML, has a key twice, or does not fit the job."""
    path = settings.nightly_config
    if (other := path.with_suffix(".yml")).exists():
        raise FinJEPAError(f"{other} is not read; name it {path.name}")
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        twice = next(_keys_twice(yaml.compose(text)), None)
        config: Any = load_run_config_yaml(text)  # as the launchpad reads: a date is text
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FinJEPAError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if twice is not None:
        raise FinJEPAError(f"{path} has the key {twice!r} twice; keep one of them")
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise FinJEPAError(f"{path} must hold a mapping such as `ops: {{world_model: {{config: {{preset: base}}}}}}`")
    try:
        dg.validate_run_config(job, config)
        _check_values(config.get("ops") or {})
    except (dg.DagsterInvalidConfigError, FinJEPAError) as error:
        text = str(error) if isinstance(error, FinJEPAError) else explain(error)
        raise FinJEPAError(f"{path} does not fit: {text}") from error
    return config


def _keys_twice(node: Any) -> Iterator[str]:
    """Keys that a mapping has more than once: YAML lets the later one replace the earlier one in silence."""
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value]
        yield from (name for name in names if names.count(name) > 1)
        for _, value in node.value:
            yield from _keys_twice(value)


def explain(error: dg.DagsterInvalidConfigError) -> str:
    """What is wrong with a run config, in one line, with the key that was probably meant."""
    text = " ".join(error.errors[0].message.split())
    found = re.match(r'Received unexpected config entry "(.+?)" (at .+?)\. Expected: (.*)', text)
    if found is None:
        return text
    name, where, expected = found.groups()
    known = set(re.findall(r"([a-z_]+)\??:", expected))
    return f"unknown key {name!r} {where}; {did_you_mean(name, known)}"


def checked_overrides(name: str, overrides: Mapping[str, Any]) -> None:
    """Raises for an unknown preset or config key, a value that does not fit, or a key that would have no effect."""
    config = preset(name).override(dict(overrides))
    for key in overrides:
        if key in ("model.channels", "model.market_channels"):
            raise FinJEPAError(f"{key} follows from the prices, and cannot be set")
        if key.startswith("td.") and key != "td.enabled" and not config.td.enabled:
            raise FinJEPAError(f"{key} has no effect without --branch jepa,td (td.enabled=true)")


def _check_values(ops: Mapping[str, Any]) -> None:
    """Names inside values, which Dagster takes for text: config keys, presets, planners, controls, utilities."""
    asked = {name: (op or {}).get("config") or {} for name, op in ops.items()}
    model = asked.get("world_model", {})
    checked_overrides(_text(model, "preset") or "small", model.get("overrides") or {})
    for name in ("planner_backtests", "daily_decision"):
        config = asked.get(name, {})
        parse_planners(_text(config, "planner") or "mppi", _text(config, "utility"))
    parse_names(_text(asked.get("planner_backtests", {}), "controls") or "none", CONTROLS, "control")


def _text(config: Mapping[str, Any], name: str) -> str | None:
    value = config.get(name)
    return value if isinstance(value, str) else None  # {env: NAME} is read when the run begins


SCHEDULES = [nightly_schedule]
SENSORS = [price_source_sensor]
