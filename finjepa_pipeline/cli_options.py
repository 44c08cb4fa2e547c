"""Options that several commands share, and the config of Dagster's ops that they amount to."""

from collections.abc import Callable
from typing import Any

import click

Ops = dict[str, dict[str, Any]]


def source_options(command: Callable) -> Callable:
    for option in (
        click.option("--revision", help="Revision of the data set on the Hub."),
        click.option("--dataset-name", help="Data set on the Hub, as owner/name."),
        click.option("--synthetic-sessions", type=int, help="Length of the source `synthetic`; left out: 2520."),
        click.option("--synthetic-assets", type=int, help="Assets of the source `synthetic`; left out: 20."),
        click.option("--synthetic-seed", type=int, help="Seed of the source `synthetic`."),
        click.option("--synthetic-variant", help="drift, momentum, risk or null, for the source `synthetic`."),
        click.option("--path", help="Folder, glob or file of Parquet, CSV or gzipped CSV, for the source `files`."),
        click.option(
            "--data-source", help="sample, files, hf or synthetic; left out: what the home holds, or the sample."
        ),
    ):
        command = option(command)
    return command


def utility_option(command: Callable) -> Callable:
    return click.option(
        "--utility",
        callback=_read_utility,
        help='What the planner maximises, as in "log_growth - 5*variance - 0.1*turnover, gross <= 0.8"; '
        "`--utility help` lists what it may speak of.",
    )(command)


def _read_utility(context: click.Context, option: click.Parameter, text: str | None) -> str | None:
    """A utility that cannot be read is told now, not after the prices have been read."""
    from finjepa_model.planning import parse_utility, utility_help

    if text is None:
        return None
    if text.strip().lower() == "help":
        click.echo(utility_help())
        context.exit()
    return parse_utility(text).text


def model_options(command: Callable) -> Callable:
    for option in (
        click.option(
            "--resume/--no-resume", default=True, help="Go on with an interrupted training of the same config."
        ),
        click.option(
            "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any config key, e.g. model.dim=64."
        ),
        click.option("--seed", type=int),
        click.option("--epochs", type=int),
        click.option("--batch-size", type=int, help="Decision dates in a batch."),
        click.option("--n-assets", type=int, help="Assets in a sample."),
        click.option("--preset", default="small", show_default=True, help="tiny, small, base or large."),
        click.option(
            "--branch", default="jepa", show_default=True, help="jepa, or jepa,td: with the zero-shot branch TD-JEPA."
        ),
    ):
        command = option(command)
    return command


def given(**options: Any) -> dict[str, Any]:
    """The options that the user has given; of the others Dagster's config knows the default."""
    return {name: value for name, value in options.items() if value is not None}


def source_ops(options: dict[str, Any]) -> Ops:
    """Config of the ingestion, from the options of `source_options`."""
    names = ("data_source", "path", "dataset_name", "revision")
    names += tuple(f"synthetic_{name}" for name in ("variant", "seed", "assets", "sessions"))
    source = given(**{name: options.get(name) for name in names})
    if source.get("data_source") == "synthetic":  # one seed for the market and for what is trained on it
        source = given(synthetic_seed=options.get("seed")) | source
    return {"ingest_prices": source} if source else {}


def model_ops(options: dict[str, Any]) -> Ops:
    """Config of the training, from the options of `model_options`.

    Raises:
        click.BadParameter: if an option cannot be read.
        FinJEPAError: if a key of --set is none of the config, or its value does not fit.
    """
    overrides = {}
    for assignment in options.get("assignments", ()):
        key, equals, value = assignment.partition("=")
        if not equals:
            raise click.BadParameter(f"{assignment!r} is not KEY=VALUE", param_hint="--set")
        overrides[key.strip()] = value.strip()
    branches = {name.strip() for name in options.get("branch", "jepa").split(",")}
    if not {"jepa"} <= branches <= {"jepa", "td"}:
        raise click.BadParameter(f"{options['branch']!r} is neither jepa nor jepa,td", param_hint="--branch")
    if "td" in branches:
        overrides["td.enabled"] = "true"
    for name in ("n_assets", "batch_size", "epochs", "seed"):
        if options.get(name) is not None:
            overrides[f"training.{name}"] = str(options[name])
    ops: Ops = {
        "world_model": {"preset": options["preset"], "overrides": overrides, "resume": options.get("resume", True)}
        | given(processes=options.get("processes"))
    }
    from finjepa_model.config import preset

    preset(options["preset"]).override(overrides)  # a wrong key is told now, not after the prices have been read
    return ops


def release_ops(hub_repo_id: str | None, dry_run: bool) -> Ops:
    """Config of the gate and the release."""
    return {"champion": {"dry_run": dry_run}, "hub_release": given(hub_repo_id=hub_repo_id) | {"dry_run": dry_run}}
