"""Run config that a person wrote: every key is known, none is there twice, and names in values are names of something."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from finjepa_model.config import preset
from finjepa_model.errors import FinJEPAError, did_you_mean

_EXAMPLE = "ops: {world_model: {config: {preset: base}}}"


def read_run_config(path: Path, job: dg.JobDefinition) -> dict[str, Any]:
    """The run config in a YAML file; an empty file has the defaults.

    Raises:
        FinJEPAError: if it is not YAML, has a key twice, or does not fit the job.
    """
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), _OneOfEach)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FinJEPAError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise FinJEPAError(f"{path} must hold a mapping such as `{_EXAMPLE}`")
    try:
        dg.validate_run_config(job, config)
        _check_values(config.get("ops") or {})
    except dg.DagsterInvalidConfigError as error:
        raise FinJEPAError(f"{path} does not fit: {explain(error)}") from error
    except FinJEPAError as error:
        raise FinJEPAError(f"{path} does not fit: {error}") from error
    return config


def explain(error: dg.DagsterInvalidConfigError) -> str:
    """What is wrong with a run config, in one line, with the key that was probably meant."""
    text = " ".join(error.errors[0].message.split())
    found = re.match(r'Received unexpected config entry "(.+?)" (at .+?)\. Expected: (.*)', text)
    if found is None:
        return text
    name, where, expected = found.groups()
    known = set(re.findall(r"([a-z_]+)\??:", expected))
    return f"unknown key {name!r} {where}; {did_you_mean(name, known)}"


def checked_overrides(name: str, overrides: Mapping[str, str]) -> None:
    """
    Args:
        name: of the preset.

    Raises:
        FinJEPAError: for an unknown preset or config key, a value that does not fit, or a key that would have no effect.
    """
    config = preset(name).override(dict(overrides))
    for key in overrides:
        if key in ("model.channels", "model.market_channels"):
            raise FinJEPAError(f"{key} follows from the prices, and cannot be set")
        if key.startswith("td.") and key != "td.enabled" and not config.td.enabled:
            raise FinJEPAError(f"{key} has no effect without --branch jepa,td (td.enabled=true)")


def _check_values(ops: Mapping[str, Any]) -> None:
    """Names inside values, which Dagster takes for text: config keys, presets, planners, controls, utilities."""
    # here: they load torch, and the schedule's tick does not
    from finjepa_pipeline.backtest.blocks import parse_names, parse_planners
    from finjepa_pipeline.backtest.strategies import CONTROLS

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


class _OneOfEach(yaml.SafeLoader):
    """YAML lets a later key of the same name replace an earlier one in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"the key {name!r} is there twice, {str(node.start_mark).strip()}")
        return super().construct_mapping(node, deep)
