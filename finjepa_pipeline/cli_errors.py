"""How the command line reports an error."""

import shlex
import sys
import traceback
from typing import Any

import click

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline import interrupts


class OneLineErrors(click.Group):
    """What the user or the machine caused ends in one line; `--debug` shows where it came from."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except BaseException as error:
            if isinstance(error, SystemExit | GeneratorExit):
                raise
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
    from finjepa_pipeline.causes import explained

    text = " ".join(str(error).split()) or type(error).__name__
    known = explained(error) or (text if isinstance(error, FinJEPAError) else None)
    return known or f"{type(error).__name__}: {text} (unexpected; run with `finjepa --debug ...` and report it)"
