"""Nothing that a person asks for is dropped: an option changes what is run, or is refused; odd names and settings are named."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import dagster as dg
import pytest
from click.testing import CliRunner
from pydantic import Field

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline import cli, commands
from finjepa_pipeline.automation import nightly_config
from finjepa_pipeline.cli_options import OpConfig, options_of
from finjepa_pipeline.definitions import defs
from finjepa_pipeline.prices.sources import PriceSourceConfig, make_feed
from finjepa_pipeline.runner import JobReport
from finjepa_pipeline.settings import Settings

NIGHTLY = defs.resolve_job_def("nightly")
ROOT = Path(__file__).parents[2]


class _RunError(Exception):
    """Ends a command at its last run."""


# What earlier runs of a command tell it; all others are its last.
ANSWERS = {"ingest": {"prices": {"feed": "a feed", "data_version": "1"}}}


# A value for each option that a command may have; options that are not named here take "x" or 3.
VALUES = {
    "data_source": "hf", "start": "2020-01-02", "end": "2020-01-03", "preset": "base", "branch": "jepa,td",
    "overrides": "model.dim=48", "grid": "model.dim=32,48", "seeds": "1,2", "planner": "qp", "controls": "ewma",
    "scheme": "rolling", "utility": "log_growth", "synthetic_variant": "null", "hub_repo_id": "owner/name",
    "dataset_name": "owner/data",
    "unseen_symbols": "0.1", "sessions": "700", "calendar": "XLON", "strategies": "a:b", "strategy": "a:b",
}  # fmt: skip
# What each command may be asked for otherwise.
MODES = {
    "ingest": [[], *(["--data-source", name] for name in ("sample", "files", "hf", "synthetic")), ["--as-of", "1"]],
    "train": [[], ["--push-to-hub", "--hub-repo-id", "a/b"], ["--branch", "jepa,td"], ["--data-source", "synthetic"]],
    "sweep": [[], ["--grid", "model.dim=32"]],
    "backtest": [[], ["--folds", "3"], ["--strategy", "c:d"]],
    "audit": [[], ["--strategy", "c:d"], ["--planner", "cem"]],
    "publish": [[], ["--dry-run"]],
    "decide": [[], ["--checkpoint", "c"], ["--data-source", "sample"]],
    "demo": [[], ["--data-source", "synthetic"]],
}
ONLY_PRINTED = {"as_json"}
CASES = [
    (command, mode, option)
    for command, modes in MODES.items()
    for mode in modes
    for option in getattr(commands, command).params
    if option.name not in ONLY_PRINTED and not set(option.opts) & set(mode)
]


def asked(monkeypatch, home, words: list[str]):
    """The runs that a command asks for, or the message with which it refuses."""
    runs = []

    def run(job, ops, debug):
        for name, config in ops.items():
            if name == "ingest_prices":
                make_feed(PriceSourceConfig(**config), Settings(home=home))  # its own refusal is one as well
        runs.append((job, {name: dict(values) for name, values in ops.items()}))
        if job not in ANSWERS or words[0] == job:
            raise _RunError
        return JobReport("run", assets=ANSWERS[job])

    monkeypatch.setenv("FINJEPA_HOME", str(home))
    monkeypatch.setattr(commands, "_run", run)
    done = CliRunner().invoke(cli.main, words)
    return runs if "_RunError" in done.output else done.output


def typed(option, different: bool = True) -> list[str]:
    if option.is_flag:
        return [(option.secondary_opts or option.opts)[0]]
    number = option.type.name == "integer" or option.metavar in ("INTEGER", "NUMBER")
    return [option.opts[-1], VALUES.get(option.name, "7" if number else "x")]


@pytest.mark.parametrize(("command", "mode", "option"), CASES, ids=lambda value: getattr(value, "name", str(value)))
def test_an_option_changes_what_is_run_or_is_refused(monkeypatch, tmp_path, command, mode, option):
    if command == "sweep" and option.name == "stop_early":
        return  # on one machine every training goes to its end: that is what --no-stop-early asks for
    before = asked(monkeypatch, tmp_path, [command, *mode])
    after = asked(monkeypatch, tmp_path, [command, *mode, *typed(option)])
    if isinstance(after, str):
        assert "Error" in after or after.startswith("finjepa: ")
    else:
        assert after != before


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["train", "--set", "model.dimm=3"], "did you mean 'model.dim'"),
        (["train", "--set", "model.dim=32", "--set", "model.dim=48"], "model.dim is set twice"),
        (["train", "--set", "training.epochs=3", "--epochs", "4"], "training.epochs has an option of its own"),
        (["train", "--set", 'model.channels=["log_return"]'], "model.channels"),
        (["train", "--set", "td.steps=5"], "--branch jepa,td"),
        (["train", "--hub-repo-id", "a/b"], "--hub-repo-id has no effect without --push-to-hub"),
        (["train", "--push-to-hub"], "--hub-repo-id"),
        (["trian"], "Did you mean 'train'?"),
        (["train", "--epoch", "3"], "--epochs"),
        (["sweep", "--seed", "3"], "--seeds"),
        (["sweep", "--stop-early"], "FINJEPA_COMPUTE"),
        (["sweep", "--grid", "model.dim"], "KEY=VALUE,VALUE"),
        (["sweep", "--grid", "model.dimm=32"], "did you mean 'model.dim'"),
        (["sweep", "--set", "model.dim=32", "--grid", "model.dim=48"], "set twice"),
        (["backtest", "--scheme", "rolling"], "without --folds"),
        (["backtest", "--folds", "3", "--scheme", "sideways"], "'expanding' or 'rolling'"),
        (["backtest", "--folds", "0"], "--folds"),
        (["backtest", "--folds", "3", "--checkpoint", "c"], "--checkpoint has no effect with --folds"),
        (["audit", "--strategy", "a:b", "--planner", "cem"], "--planner has no effect with --strategy"),
        (["ingest", "--data-source", "files", "--path", "x", "--revision", "main"], "`hf`"),
        (["ingest", "--symbols", ""], "symbol"),
    ],
)
def test_what_would_have_no_effect_is_named(monkeypatch, tmp_path, words, named):
    said = asked(monkeypatch, tmp_path, words)
    assert isinstance(said, str)
    assert named in said


def test_a_field_of_a_config_class_is_an_option_with_its_help_default_and_bounds():
    class LaterConfig(PriceSourceConfig):
        """As if a field had been added."""

        most_rows: int = Field(default=7, ge=1, description="rows that are read")
        files: list[int] = Field(default_factory=lambda: [1, 2], description="Numbers of files.")

    @click.command(context_settings={"token_normalize_func": lambda token: token.replace("_", "-")})
    @options_of(OpConfig("ingest_prices", LaterConfig, but=("path",)))
    def command(ops):
        click.echo(json.dumps(ops))

    shown = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    assert "--most-rows INTEGER rows that are read [default: 7]" in shown
    assert "--files FILE,... Numbers of files. [default: 1,2]" in shown
    assert "--path" not in shown
    words = ["--most_rows", "3", "--files", "4, 5", "--whole", "--accept", "a,b"]
    given = {"most_rows": 3, "files": [4, 5], "whole": True, "accept": ["a", "b"]}
    assert json.loads(CliRunner().invoke(command, words).output) == {"ingest_prices": given}
    assert CliRunner().invoke(command, ["--most-rows", "0"]).exit_code == 2
    assert CliRunner().invoke(command, ["--files", "x"]).exit_code == 2
    assert json.loads(CliRunner().invoke(command, []).output) == {}


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda page: page.name
)
def test_every_option_that_the_documentation_names_exists(page):
    for name, words in re.findall(r"finjepa ([a-z]+)((?: [^\n`#|]*)?)", page.read_text()):
        command = getattr(commands, name, None)
        if name in cli.COMMANDS and isinstance(command, click.Command):
            known = {spelling for option in command.params for spelling in (*option.opts, *option.secondary_opts)}
            given = {flag.replace("_", "-") for flag in re.findall(r"(?<![\w-])--[a-z][a-z_-]*", words)}
            assert given <= known | {"--help"}, (name, words)


def test_the_list_of_commands_is_theirs_and_needs_neither_dagster_nor_torch():
    for name, text in cli.COMMANDS.items():
        assert getattr(commands, name).help.replace("CHECKPOINT", "a checkpoint").startswith(text[:12])
    program = "import sys; from finjepa_pipeline.cli import main; main(['--help'], standalone_mode=False)"
    program += "; print({'dagster', 'torch', 'duckdb', 'polars'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in cli.COMMANDS)
    assert done.stdout.endswith("set()\n")
    done = subprocess.run([sys.executable, "-m", "finjepa_pipeline", "clean", "--help"], capture_output=True, text=True)
    assert done.stderr == ""  # no warning of a library
    assert "--keep" in done.stdout


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("opps: {}", "'opps'.*did you mean 'ops'"),
        ("ops: {world_model: {config: {preset: tiny}}}\nops: {}", "'ops' twice"),
        ("ops: {world_modle: {}}", "'world_modle'.*did you mean 'world_model'"),
        ("ops: {world_model: {config: {presset: tiny}}}", "'presset'.*did you mean 'preset'"),
        ("ops: {world_model: {config: {preset: tinyy}}}", "'tinyy'"),
        ("ops: {world_model: {config: {overrides: {model.dimm: '3'}}}}", "did you mean 'model.dim'"),
        ("ops: {world_model: {config: {overrides: {td.steps: '3'}}}}", "no effect"),
        ("ops: {world_model: {config: {processes: many}}}", "processes"),
        ("ops: {planner_backtests: {config: {planner: cemm}}}", "cemm"),
        ("ops: {planner_backtests: {config: {controls: ewm}}}", "ewm"),
        ("ops: {daily_decision: {config: {utility: log_grwth}}}", "log_grwth"),
        ("ops: {daily_decision: {config: {prices: {feeed: x}}}}", "'feeed'"),
        ("ops: {challenger_audit: {config: {dry_run: true}}}", "'dry_run'"),
        ("ops: {leakage_audit: {config: {seeds: 9}}}", "'leakage_audit'"),  # of another job
        ("[]", "must hold a mapping"),
        ("ops: [", "not YAML"),
    ],
)
def test_a_mistake_in_the_config_of_a_night_is_named(tmp_path, text, named):
    settings = Settings(home=tmp_path).ensure()
    settings.nightly_config.write_text(text)
    with pytest.raises(FinJEPAError, match=rf"nightly\.yaml.*{named}"):
        nightly_config(settings, NIGHTLY)


def test_an_empty_file_has_the_defaults_and_another_ending_is_not_read(tmp_path):
    settings = Settings(home=tmp_path).ensure()
    settings.nightly_config.write_text("# nothing yet\n")
    assert nightly_config(settings, NIGHTLY) == {}
    settings.nightly_config.with_suffix(".yml").write_text("ops: {}")
    with pytest.raises(FinJEPAError, match=r"nightly\.yml is not read"):
        nightly_config(settings, NIGHTLY)


def test_no_step_takes_any_key_whatever():
    loose = [
        (job.name, node.name)
        for job in defs.resolve_all_job_defs()
        for node in job.all_node_defs
        if node.name != "price_source"  # it is observed, in no job of ours
        if not node.has_config_field or node.config_field.config_type.kind == dg._config.ConfigTypeKind.ANY
    ]
    assert loose == []


VARIABLES = {name: f"FINJEPA_{name.upper()}" for name in Settings.model_fields}


def test_an_empty_variable_means_the_default_and_every_variable_says_what_it_is(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for variable in VARIABLES.values():
        monkeypatch.setenv(variable, "")
    assert Settings.from_env() == Settings(home=tmp_path / ".finjepa")
    # the configuration reference is made of these
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_variables_are_read_and_paths_are_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = {"home": "here", "artifacts": "shared", "wait_minutes": "5", "ui_url": "http://x/", "compute": "a:6379"}
    for name, value in given.items():
        monkeypatch.setenv(VARIABLES[name], value)
    found = Settings.from_env()
    assert (found.home, found.artifacts) == (tmp_path / "here", str(tmp_path / "shared"))
    assert (found.wait_minutes, found.ui_url, found.ray_address) == (5, "http://x", "a:6379")
    monkeypatch.setenv(VARIABLES["compute"], "local:3")
    assert (Settings.from_env().ray_address, Settings.from_env().processes) == (None, 3)
    monkeypatch.setenv(VARIABLES["artifacts"], "s3://bucket/prefix")
    assert Settings.from_env().artifacts == "s3://bucket/prefix"


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("wait_minutes", "ten", r"integer.*default 30"),
        ("wait_minutes", "0", "greater than 0"),
        ("compute", "local:0", "neither `local`"),
        ("compute", "http://head:8265", "neither `local`"),
        ("compute", "ray://10.0.0.1:10001", "has joined"),
    ],
)
def test_a_value_that_makes_no_sense_is_one_line_with_the_variable(monkeypatch, name, value, named):
    monkeypatch.setenv(VARIABLES[name], value)
    with pytest.raises(FinJEPAError, match=f"^{VARIABLES[name]}={value!r}.*{named}") as refused:
        Settings.from_env()
    assert "\n" not in str(refused.value)


def test_a_command_runs_in_a_notebook_whose_kernel_is_of_another_environment():
    program = "from finjepa_pipeline import cli; cli.main = lambda: __import__('arch'); cli.run()"
    environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
