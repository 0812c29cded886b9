"""The commands as a typer application."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from fxoffload.cli.doctor import doctor
from fxoffload.cli.output import report_errors
from fxoffload.cli.plan import plan
from fxoffload.cli.probe import probe
from fxoffload.cli.report import report
from fxoffload.cli.train import train

# Errors of the user are one line (report_errors); a fault of ours is an ordinary traceback.
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fxoffload {metadata.version('fxoffload')}")
        raise typer.Exit


@app.callback()
def set_up(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Check a machine, measure its drives, plan a training step, and show what one did.

    Exit codes: 0 all is well, 1 a budget or a check was missed, 2 wrong use.
    """


for _command in (doctor, probe, plan, train, report):
    app.command()(report_errors()(_command))
