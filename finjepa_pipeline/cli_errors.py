"""How the command line tells of an error."""

import traceback
from typing import Any

import click

from finjepa_model.errors import FinJEPAError


class OneLineErrors(click.Group):
    """A user's mistake ends in one line; `--debug` shows where it came from."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except Exception as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            known = isinstance(error, FinJEPAError)
            text = " ".join(str(error).split()) or type(error).__name__
            hint = "" if known else " (unexpected; run with `finjepa --debug ...` and report it)"
            click.echo(f"finjepa: {text if known else f'{type(error).__name__}: {text}'}{hint}", err=True)
            ctx.exit(1)
