"""Options that several commands share, and the config of Dagster's ops that they amount to."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource

from finjepa_model.errors import FinJEPAError

Ops = dict[str, dict[str, Any]]


def source_options(command: Callable) -> Callable:
    for option in (
        click.option(
            "--whole",
            is_flag=True,
            help="The source is all there is: rows that it does not cover end; left out: they are kept.",
        ),
        click.option(
            "--accept",
            metavar="RULE,...",
            help="Rules that do not refuse these prices, as in ohlc_order,stray_session; bad rows stay in quarantine.",
        ),
        click.option(
            "--calendar",
            help="Exchange of the sessions, as XNYS or 24/7; auto: of each symbol its own, auto:XASX with decisions at the "
            "closes of XASX; left out: New York, or what the days say.",
        ),
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
        help='What the planner maximises, as in "log_growth - 2.5*variance - 0.002*turnover, gross <= 0.8"; '
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
        click.option("--branch", default="jepa", show_default=True, help="jepa, or jepa,td: with the branch TD-JEPA."),
    ):
        command = option(command)
    return command


def given(**options: Any) -> dict[str, Any]:
    """The options that the user has given; of the others Dagster's config knows the default."""
    return {name: value for name, value in options.items() if value is not None}


def refuse_given(without: str, *names: str) -> None:
    """Refuse options that the command line holds and that have no effect without another one.

    Args:
        without: the end of the message, such as "without --folds".

    Raises:
        click.UsageError: with the name of the first of them.
    """
    context = click.get_current_context()
    for option in context.command.params:
        typed = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if option.name in names and typed:
            raise click.UsageError(f"{option.opts[-1]} has no effect {without}")


def source_ops(options: dict[str, Any]) -> Ops:
    """Config of the ingestion, from the options of `source_options`."""
    names = ("data_source", "path", "dataset_name", "revision", "calendar")
    names += tuple(f"synthetic_{name}" for name in ("variant", "seed", "assets", "sessions"))
    source = given(**{name: options.get(name) for name in names})
    if options.get("accept"):
        source["accept"] = [name.strip() for name in options["accept"].split(",") if name.strip()]
    if options.get("whole"):
        source["whole"] = True
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
        key, equals, value = (part.strip() for part in assignment.partition("="))
        if not equals:
            raise click.BadParameter(f"{assignment!r} is not KEY=VALUE", param_hint="--set")
        if key in overrides:
            raise click.BadParameter(f"{key} is set twice", param_hint="--set")
        overrides[key] = value
    branches = {name.strip() for name in options.get("branch", "jepa").split(",")}
    if not {"jepa"} <= branches <= {"jepa", "td"}:
        raise click.BadParameter(f"{options['branch']!r} is neither jepa nor jepa,td", param_hint="--branch")
    more = {"td.enabled": "true"} if "td" in branches else {}
    for name in ("n_assets", "batch_size", "epochs", "seed"):
        if options.get(name) is not None:
            more[f"training.{name}"] = str(options[name])
    for key in more.keys() & overrides.keys():
        raise click.BadParameter(f"{key} has an option of its own, which is given too", param_hint="--set")
    overrides |= more
    ops: Ops = {
        "world_model": {"preset": options["preset"], "overrides": overrides, "resume": options.get("resume", True)}
        | given(processes=options.get("processes"))
    }
    checked_overrides(options["preset"], overrides)  # a wrong key is told now, not after the prices have been read
    return ops


def checked_overrides(name: str, overrides: Mapping[str, str]) -> None:
    """
    Raises:
        FinJEPAError: for an unknown preset or config key, a value that does not fit, or a key that would have no effect.
    """
    from finjepa_model.config import preset

    config = preset(name).override(dict(overrides))
    for key in overrides:
        if key in ("model.channels", "model.market_channels"):
            raise FinJEPAError(f"{key} follows from the prices, and cannot be set")
        if key.startswith("td.") and key != "td.enabled" and not config.td.enabled:
            raise FinJEPAError(f"{key} has no effect without --branch jepa,td (td.enabled=true)")


def grid_of(points: Sequence[str], name: str, overrides: Mapping[str, str]) -> dict[str, list[str]]:
    """The values to try by config key, from the options --grid KEY=VALUE,VALUE.

    Raises:
        click.BadParameter: if one cannot be read, or a key is there twice.
        FinJEPAError: if a key is none of the config, or a value does not fit.
    """
    grid: dict[str, list[str]] = {}
    for point in points:
        key, equals, values = (part.strip() for part in point.partition("="))
        if not equals or not values:
            raise click.BadParameter(f"{point!r} is not KEY=VALUE,VALUE", param_hint="--grid")
        if key in grid or key in overrides:
            raise click.BadParameter(f"{key} is set twice", param_hint="--grid")
        grid[key] = values.split(",")
        for value in grid[key]:
            checked_overrides(name, {**overrides, key: value})
    return grid


def release_ops(hub_repo_id: str | None, dry_run: bool) -> Ops:
    """Config of the gate and the release."""
    return {"champion": {"dry_run": dry_run}, "hub_release": given(hub_repo_id=hub_repo_id) | {"dry_run": dry_run}}
