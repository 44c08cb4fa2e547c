"""finjepa ...: the same jobs as in the UI, run in this process.

Exit status 0 done, 1 failed, 2 wrong usage. Errors are one line on standard error; progress goes there too, results to
standard output. The commands are in `commands.py`, which is imported when one is called: Dagster and torch take seconds to load.
"""

import atexit
import difflib
import gc
import importlib
import os
import shlex
import sys
import traceback
import warnings
from typing import Any

import click

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline import interrupts
from finjepa_pipeline.causes import explained

COMMANDS = {  # name to what `finjepa --help` prints, in the order of use
    "demo": "The whole pipeline on the embedded sample, small model: prices to a release and a decision.",
    "ingest": "Prices to validated tables.",
    "train": "Everything up to a checkpoint, and on to the Hub if asked.",
    "sweep": "Train an ablation grid, or an ensemble (--no-stop-early).",
    "forecast": "Volatilities, correlations and quantiles after a close, and how good such forecasts were.",
    "backtest": "Leaderboard and tear sheet.",
    "compare": "Checkpoints or strategies side by side, with paired intervals.",
    "audit": "The leakage, null-market, known-truth, delay and permutation tests.",
    "decide": "The decision for a date, and the expected outcome.",
    "publish": "The champion gate and the release.",
    "verify": "Recompute the hashes and scores of a live record, and compare.",
    "reproduce": "Build a checkpoint again from its lineage, and compare.",
    "clean": "Free disk: remove what nobody needs any more.",
    "doctor": "What is installed, which device, which data, which token; what is missing and how to get it.",
}


class Commands(click.Group):
    """Loads a command when it is called. What the user or the machine caused ends in one line; `--debug` shows the trace."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        if not ctx.params.get("debug"):  # before the import, which warns
            warnings.filterwarnings("ignore")  # warnings of libraries are for programmers
        gc.disable()  # it takes a third of the time of imports and finds nothing
        try:
            return getattr(importlib.import_module("finjepa_pipeline.commands"), cmd_name)
        finally:
            gc.freeze()  # nor would it find anything there later
            gc.enable()

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            raise (click.UsageError(f"{error.message} Did you mean '{near[0]}'?", ctx) if near else error) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException, click.Abort, SystemExit):
            raise
        except BaseException as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            click.echo(f"finjepa: {one_line(error)}", err=True)
            ctx.exit(1)


def one_line(error: BaseException) -> str:
    """What happened and the way out."""
    if interrupts.asked.is_set() or not isinstance(error, Exception):
        command = shlex.join(["finjepa", *sys.argv[1:]])
        if isinstance(error, KeyboardInterrupt) and error.args:
            return f"interrupted: {error.args[0]}; `{command}` goes on from there"
        return f"interrupted: nothing is left half done; `{command}` does what is missing"
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith(
        "finjepa"
    ):  # the model package alone
        return f"the command line needs {error.name}, which is not installed: pip install 'finjepa[pipeline]'"
    text = " ".join(str(error).split()) or type(error).__name__
    known = explained(error) or (text if isinstance(error, FinJEPAError) else None)
    return known or f"{type(error).__name__}: {text} (unexpected; run with `finjepa --debug ...` and report it)"


@click.group(
    cls=Commands,
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


def run() -> None:
    """The console script. It leaves without taking the interpreter apart: PyTorch outlives DuckDB's module there, and
    nanobind would list every object of it on the user's terminal."""
    status: Any = 0
    os.environ.pop(
        "MPLBACKEND", None
    )  # of a Jupyter kernel, which may be of another environment: arch loads matplotlib
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
