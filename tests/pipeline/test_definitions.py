"""The code location loads as `dagster dev` loads it, and every asset tells a person what it is."""

import re
import subprocess
import sys

import dagster as dg
from dagster_shared.yaml_utils import load_run_config_yaml

from finjepa_pipeline.definitions import defs

HEAVY = {"great_expectations", "skfolio", "datasets", "sklearn", "matplotlib", "ray", "scipy.stats", "arch"}
ORDER = ("prices", "features", "model", "audit", "walk_forward", "backtest", "publishing")


def test_the_code_location_loads():
    dg.Definitions.validate_loadable(defs)


def test_every_asset_has_a_description_an_owner_a_kind_and_follows_only_on_its_own_group_or_an_earlier_one():
    """So that the graph reads from left to right; and freshness is promised for what every night makes."""
    group = {spec.key: ORDER.index(spec.group_name or "") for spec in defs.resolve_all_asset_specs()}
    for spec in defs.resolve_all_asset_specs():
        assert spec.description, spec.key
        assert all(group[dep.asset_key] <= group[spec.key] for dep in spec.deps), spec.key
        if spec.key.to_user_string() != "price_source":
            assert spec.owners, spec.key
            assert spec.kinds, spec.key
        if spec.key.to_user_string() in ("prices", "world_model", "champion", "hub_release", "daily_decision"):
            assert spec.freshness_policy is not None, spec.key


def test_every_job_has_a_time_limit_and_every_field_of_the_launchpad_an_example_that_is_accepted_as_it_is_typed():
    for job in defs.resolve_all_job_defs():
        if job.name.startswith("__"):
            continue
        assert int(job.tags[dg.MAX_RUNTIME_SECONDS_TAG]) > 0, job.name
        ops = job.run_config_schema.run_config_schema_type.fields["ops"].config_type.fields
        for op, field in ops.items():
            asked = field.config_type.fields["config"].config_type if "config" in field.config_type.fields else None
            for name, one in getattr(asked, "fields", {}).items():
                example = re.search(r"e\.g\. (.+)$", one.description or "")
                if example is None:
                    assert isinstance(one.default_value, bool), f"{op}.{name}: {one.description}"
                    continue
                value = load_run_config_yaml(example[1])
                dg.validate_run_config(job, {"ops": {op: {"config": {name: value}}}})


def test_a_night_leaves_audits_and_walk_forwards_to_their_own_jobs():
    jobs = {job.name: {node.name for node in job.all_node_defs} for job in defs.resolve_all_job_defs()}
    assert "leakage_audit" in jobs["audit"]
    assert "walk_forward" in jobs["walk_forward_job"]
    assert {"planner_backtests", "leaderboard"} <= jobs["nightly"]
    assert not jobs["nightly"] & {"leakage_audit", "walk_forward"}


def test_the_code_location_loads_without_what_only_some_steps_need():
    """Every step of a run, every schedule's tick and every command load it in a process of their own."""
    program = f"import sys, finjepa_pipeline.definitions; sys.exit(' '.join({HEAVY} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert done.stderr.splitlines()[:1] in ([], [""]), done.stderr
