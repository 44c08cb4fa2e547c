"""finjepa ...: the same jobs as in the UI, run in this process.

Exit status 0 done, 1 failed, 2 wrong usage. Errors are one line on standard error; progress goes there too, results to
standard output.
"""

import atexit
import importlib.util
import os
import sys
import warnings
from pathlib import Path
from shlex import quote
from typing import Any

import click
from rich.table import Table

from finjepa_model.errors import FinJEPAError
from finjepa_model.files import to_json
from finjepa_pipeline import interrupts
from finjepa_pipeline.cli_errors import OneLineErrors
from finjepa_pipeline.cli_options import (
    Ops,
    given,
    grid_of,
    model_ops,
    model_options,
    refuse_given,
    release_ops,
    source_ops,
    source_options,
    utility_option,
)
from finjepa_pipeline.console import (
    err,
    out,
    read_decision,
    say_cleaned,
    say_decision,
    say_leaderboard,
    say_model,
    say_prices,
    say_quality,
    say_refusal,
    say_release,
    say_sweep,
)
from finjepa_pipeline.settings import Settings


@click.group(
    cls=OneLineErrors,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
)
@click.option("--debug", is_flag=True, help="Show Dagster's log and the trace of an error.")
@click.version_option(package_name="finjepa")
@click.pass_context
def main(ctx: click.Context, debug: bool) -> None:
    """FinJEPA: a JEPA world model for portfolio choice."""
    ctx.obj = debug
    if not debug:
        warnings.filterwarnings("ignore")  # what libraries tell programmers is no business of a user


@main.command()
@source_options
@click.option("--seed", type=int, help="Seed of the source `synthetic`, as --synthetic-seed.")
@click.option("--symbols", help="Comma list: only these symbols.")
@click.option("--start", help="Only from this day on, YYYY-MM-DD.")
@click.option("--end", help="Only up to this day, YYYY-MM-DD.")
@click.option(
    "--as-of",
    help="Show the prices as they were at this revision: its number or the start of its commit; fetch nothing.",
)
@click.pass_obj
def ingest(debug: bool, symbols: str | None, as_of: str | None, **source: Any) -> None:
    """Prices to validated tables."""
    if source["seed"] is not None and source["data_source"] != "synthetic":
        raise FinJEPAError("a seed belongs to the source `synthetic`; add --data-source synthetic")
    ops = source_ops(source)
    more = given(
        start=source["start"],
        end=source["end"],
        as_of=as_of,
        symbols=None if symbols is None else [name.strip() for name in symbols.split(",")],
    )
    if more:
        ops["ingest_prices"] = ops.get("ingest_prices", {}) | more
    report = _run("ingest", ops, debug)
    say_prices(report.assets)
    say_quality(report.assets)


@main.command()
@source_options
@model_options
@click.option("--processes", type=int, help="Ranks; one for each GPU, or one on the CPU, if left out.")
@click.option("--push-to-hub", is_flag=True, help="Release the checkpoint if it passes the champion gate.")
@click.option("--hub-repo-id", help="Repository on the Hub, as owner/name.")
@click.option("--planner", default="cem,mppi", show_default=True, help="For the gate of --push-to-hub.")
@click.pass_obj
def train(debug: bool, push_to_hub: bool, hub_repo_id: str | None, planner: str, **options: Any) -> None:
    """Everything up to a checkpoint, and on to the Hub if asked."""
    ops = source_ops(options) | model_ops(options)
    if not push_to_hub:
        refuse_given("without --push-to-hub", "hub_repo_id", "planner")
    else:
        if not (hub_repo_id or Settings.from_env().hub_repo_id):
            raise FinJEPAError("--push-to-hub needs --hub-repo-id owner/name, or FINJEPA_HUB_REPO_ID")
        ops |= {"planner_backtests": {"planner": planner}} | release_ops(hub_repo_id, False)
    report = _run("train_and_release" if push_to_hub else "train", ops, debug)
    say_prices(report.assets)
    say_model(report.assets)
    if push_to_hub:
        say_release(report.assets)


@main.command()
@model_options
@click.option("--grid", multiple=True, metavar="KEY=VALUE,VALUE", help="A config key and the values to try.")
@click.option(
    "--seeds", default="0", show_default=True, help="Comma list; every point of the grid is trained with each."
)
@click.option("--metric", help="Number of the validation records, lower is better; loss if left out.")
@click.option("--stop-early/--no-stop-early", default=True, help="On a cluster, end what falls behind.")
@click.pass_obj
def sweep(debug: bool, grid: tuple[str, ...], seeds: str, metric: str | None, stop_early: bool, **options: Any) -> None:
    """Train an ablation grid, or an ensemble (--no-stop-early), on the panel that is there: on a Ray cluster side by side."""
    refuse_given("in a sweep; name --seeds", "seed")
    if not options["resume"]:
        refuse_given("in a sweep, which always goes on", "resume")
    if stop_early and Settings.from_env().ray_address is None:
        refuse_given("without a cluster (FINJEPA_COMPUTE)", "stop_early")
    model = model_ops(options)["world_model"]
    asked = grid_of(grid, model["preset"], model["overrides"])
    if not seeds.replace(",", "").isdigit():
        raise FinJEPAError(f"--seeds {seeds} is no list of numbers; write --seeds 0,1,2")
    shared = {name: model[name] for name in ("preset", "overrides")} | given(metric=metric)
    config = shared | {"grid": asked, "seeds": [int(s) for s in seeds.split(",") if s], "stop_early": stop_early}
    say_sweep(_run("sweep", {"model_sweep": config}, debug).assets["model_sweep"])


@main.command()
@click.option("--planner", default="cem,mppi", show_default=True, help="Comma list of planners.")
@click.option("--checkpoint", help="Id of a checkpoint of this home; the newest one if left out.")
@utility_option
@click.option("--controls", help="Comma list of model-matched controls, or all, or none.")
@click.option(
    "--strategy", "strategies", multiple=True, help="A strategy of your own, module:callable or file.py:callable."
)
@click.option("--fill", help="close or open: when orders are filled.")
@click.option("--n-assets", type=click.IntRange(2), help="Most assets that are traded; 20 if left out.")
@click.option("--folds", type=int, help="Walk forward over so many folds, one model each, in place of the one split.")
@click.option("--scheme", help="expanding or rolling, with --folds.")
@click.option("--held-back", type=int, help="Sessions at the end that no fold sees, with --folds; 504 if left out.")
@click.option("--open-held-back", is_flag=True, help="Judge the last fold there too; every opening is recorded.")
@click.option("--preset", help="Of the models of the folds: tiny, small, base or large.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any config key, with --folds.")
@click.pass_obj
def backtest(debug: bool, strategies: tuple[str, ...], **options: Any) -> None:
    """Leaderboard and tear sheet."""
    plan = {name: options.pop(name) for name in ("folds", "scheme", "held_back", "preset")}
    assignments, open_held_back = options.pop("assignments"), options.pop("open_held_back")
    if plan["folds"] is None:
        refuse_given("without --folds", "scheme", "held_back", "preset", "open_held_back", "assignments")
    else:
        refuse_given("with --folds, which trains its own models", "checkpoint")
        from finjepa_pipeline.backtest.controls import CONTROLS
        from finjepa_pipeline.backtest.docket import parse_names, parse_planners
        from finjepa_pipeline.backtest.walk_forward import run_walk_forward

        overrides = model_ops({"preset": plan["preset"] or "tiny", "assignments": assignments})["world_model"][
            "overrides"
        ]
        controls = parse_names(options["controls"] or "none", CONTROLS, "control")
        made = run_walk_forward(
            lambda job, ops, partition: _run(job, {k: dict(v) for k, v in ops.items()}, debug, partition),
            given(**plan) | {"overrides": overrides},
            [*parse_planners(options["planner"]), *controls, *strategies],
            given(open_held_back=open_held_back, **{name: options[name] for name in ("n_assets", "utility", "fill")}),
        )
        say_leaderboard({"leaderboard": made})
        return
    chosen = given(**options) | ({"strategies": list(strategies)} if strategies else {})
    say_leaderboard(_run("backtest", {"planner_backtests": chosen}, debug).assets)


@main.command()
@click.option("--planner", help="Planner on the checkpoint's world model; mppi if left out.")
@click.option("--strategy", help="A strategy of your own instead, module:callable or file.py:callable.")
@click.option("--checkpoint", help="Id of a checkpoint of this home; the newest one if left out.")
@click.option("--dates", type=int, help="Random dates at which the future is changed.")
@click.option("--seeds", type=int, help="Null markets, and a quarter as many planted ones; 0 for none.")
@click.option("--symbols", type=int, help="Symbols of the home's prices that are rebuilt.")
@click.option("--sessions", type=int, help="Newest sessions of them.")
@click.pass_obj
def audit(debug: bool, **options: Any) -> None:
    """The null, planted, leak, delay and permutation tests."""
    from finjepa_pipeline.backtest.charges import NOT_RUN, TESTS, verdict_of

    if options["strategy"] is not None:
        refuse_given("with --strategy, which is audited in its place", "planner")
    report = _run("audit", {"audit_trial": given(**options)}, debug)
    table = Table("", "test", "finding", title="Audit", title_justify="left", box=None)
    held = {name: (passed, text) for name, passed, text in report.checks}
    verdicts = {name: verdict_of(*held.get(name, (None, NOT_RUN))) for name in TESTS}
    for name, verdict in verdicts.items():
        table.add_row(
            {"passed": "ok", "failed": "FAILED"}.get(verdict, verdict), name, held.get(name, (None, "not asked for"))[1]
        )
    out.print(table)
    bad = [f"{name} ({verdicts[name]})" for name in held if verdicts[name] in ("failed", NOT_RUN)]
    if bad:
        raise FinJEPAError(f"the audit failed: {', '.join(bad)}; see the findings above")
    without = [f"{name} ({verdict})" for name, verdict in verdicts.items() if verdict != "passed"]
    out.print(f"No verdict: {', '.join(without)}" if without else "All tests passed.")


@main.command()
@click.option("--hub-repo-id", help="Repository on the Hub, as owner/name; FINJEPA_HUB_REPO_ID if left out.")
@click.option("--dry-run", is_flag=True, help="Say what would be released, and release nothing.")
@click.pass_obj
def publish(debug: bool, hub_repo_id: str | None, dry_run: bool) -> None:
    """The champion gate and the release."""
    say_release(_run("publish", release_ops(hub_repo_id, dry_run), debug).assets)


@main.command()
@source_options
@click.option("--as-of", help="Decide at the last close up to this date, YYYY-MM-DD; the newest one if left out.")
@click.option("--checkpoint", help="Checkpoint folder or Hub repository; the champion if left out.")
@click.option("--planner", help="Planner; the one that won the champion its place if left out.")
@click.option("--n-assets", type=click.IntRange(2), help="Most assets that are traded; left out: as in the backtest.")
@utility_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output and nothing else there.")
@click.pass_obj
def decide(debug: bool, as_json: bool, **options: Any) -> None:
    """The decision for a date, and the expected outcome. A checkpoint of the Hub needs no home: prices are ingested first where
    there are none, or a source is named."""
    source = source_ops(options)
    asked = {name: options[name] for name in ("as_of", "checkpoint", "planner", "utility", "n_assets")}
    if source or (options["checkpoint"] and not Settings.from_env().warehouse.is_file()):
        ingested = _run("ingest", source, debug).assets["prices"]
        asked["prices"] = {name: ingested[name] for name in ("feed", "data_version")}
    report = _run("decide", {"daily_decision": given(**asked)}, debug)
    decision = read_decision(report.assets)
    click.echo(to_json(decision)) if as_json else say_decision(decision)


@main.command()
@source_options
@click.option("--seed", type=int)
@click.option("--n-assets", type=click.IntRange(2), help="Most assets that are traded; 20 if left out.")
@click.pass_obj
def demo(debug: bool, seed: int | None, n_assets: int | None, **source: str | None) -> None:
    """The whole pipeline on the embedded sample, small model: prices to a release and a decision."""
    settings = Settings.from_env()
    source["data_source"] = source.get("data_source") or "sample"
    ops = source_ops(source | {"seed": seed}) | model_ops({"preset": "tiny", "seed": seed})
    ops["planner_backtests"] = given(n_assets=n_assets)
    report = _run("nightly", ops, debug)
    say_prices(report.assets)
    say_model(report.assets)
    say_leaderboard(report.assets)
    say_release(report.assets)
    say_decision(read_decision(report.assets))
    out.print(f"\nDone in {report.seconds:.0f} s. See it all in the browser:")
    out.print(f"  {_ui_command(settings)}", style="bold")


@main.command()
@click.argument("checkpoint")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output and nothing else there.")
def reproduce(checkpoint: str, as_json: bool) -> None:
    """Build CHECKPOINT (an id of this home, a folder, a Hub repository) again from its lineage, and compare."""
    from finjepa_pipeline.publishing.reproduce import reproduce as rebuild

    settings = Settings.from_env().ensure()
    err.print(f"finjepa reproduce: the job train, in {settings.home / 'reproductions'}", style="bold")
    report = rebuild(settings, checkpoint)
    if as_json:
        click.echo(to_json(vars(report) | {"rebuilt": str(report.rebuilt)}))
    else:
        out.print(f"{report.checkpoint} was rebuilt as {report.rebuilt}", highlight=False)
        for line in report.differences or ("equal, bit by bit",):
            out.print(f"  {line}", highlight=False)
        for line in report.surroundings:
            out.print(f"  not as it was: {line}", highlight=False)
    if not report.identical:
        raise FinJEPAError(f"{report.checkpoint} did not come out the same: {report.differences[0]}")


@main.command()
@click.option(
    "--keep", type=int, help="How many of each kind stay beside those that are needed, the newest; 14 if left out."
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
def clean(keep: int | None, dry_run: bool) -> None:
    """Free disk: remove what nobody needs any more. Releases, champions, decisions and the warehouse are never removed."""
    from finjepa_pipeline.retention import KEEP, hold_reserve, release_reserve
    from finjepa_pipeline.retention import clean as remove
    from finjepa_pipeline.run_lock import locked
    from finjepa_pipeline.runner import open_instance
    from finjepa_pipeline.warehouse import Warehouse

    settings, own = Settings.from_env(), f"clean-{os.getpid()}"
    release_reserve(settings)
    settings.ensure()
    with (
        open_instance(settings) as instance,
        locked(settings.dagster / "commands", own),
        Warehouse.from_settings(settings).connect(read_only=True) as con,
    ):
        plan = remove(settings, con, instance, KEEP if keep is None else keep, dry_run, own)
    hold_reserve(settings)
    say_cleaned(plan, dry_run)


@main.command()
def doctor() -> None:
    """What is installed, which device, which data, which token; what is missing and how to get it."""
    from finjepa_pipeline.doctor import examine

    table = Table("", "what", "found", "way out", box=None)
    for finding in examine(Settings.from_env()):
        table.add_row("ok" if finding.good else "--", finding.what, finding.found, finding.way_out)
    out.print(table)


def _run(job: str, ops: Ops, debug: bool, partition: str | None = None):
    from finjepa_pipeline.prices.ingest import ContractError
    from finjepa_pipeline.runner import run_job

    settings = Settings.from_env().ensure()
    err.print(f"finjepa {job} in {settings.home}", style="bold")
    try:
        return run_job(settings, job, ops, err, debug, partition)
    except ContractError as refusal:
        say_refusal(refusal, settings)
        raise


def _ui_command(settings: Settings) -> str:
    where = Path(importlib.util.find_spec("finjepa_pipeline").origin).parent.parent / "workspace.yaml"  # type: ignore[union-attr]
    workspace = f"-w {quote(str(where))}" if where.is_file() else "-m finjepa_pipeline.definitions"
    homes = f"FINJEPA_HOME={quote(str(settings.home))} DAGSTER_HOME={quote(str(settings.dagster))}"
    return f"{homes} {quote(sys.executable)} -m finjepa_pipeline.ui {workspace}"


def run() -> None:
    """The console script. It leaves without taking the interpreter apart: PyTorch outlives DuckDB's module there, and
    nanobind would list every object of it on the user's terminal."""
    status: Any = 0
    interrupts.install()
    try:
        main()
    except SystemExit as leaving:
        status = leaving.code
    if interrupts.asked.is_set():
        interrupts.end_children()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1 if status else 0)


if __name__ == "__main__":
    run()
