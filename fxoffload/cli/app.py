"""The commands as a typer application."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fxoffload.cli.bench import bench
from fxoffload.cli.doctor import doctor
from fxoffload.cli.output import USAGE, print_error, report_errors
from fxoffload.cli.plan import plan
from fxoffload.cli.probe import probe
from fxoffload.cli.report import report
from fxoffload.cli.train import train

# What typer raises for options and commands that do not exist; it exports only this heir of it.
_WrongUse: type[Exception] = typer.BadParameter.__bases__[0]


@contextmanager
def _report_wrong_use() -> Generator[None]:
    try:
        yield
    except _WrongUse as caught:
        error: Any = caught
        command = error.ctx.command_path if error.ctx is not None else "fxoffload"
        print_error(f"{error.format_message()} (see {command} --help)")
        raise typer.Exit(USAGE) from None


class _Commands(TyperGroup):
    """The commands; what typer finds wrong with their arguments is one line, too."""

    def make_context(self, *args: Any, **keywords: Any) -> Any:
        """Read the options in front of a command."""
        with _report_wrong_use():
            return super().make_context(*args, **keywords)

    def invoke(self, ctx: Any) -> Any:
        """Read the arguments of the command, and run it."""
        with _report_wrong_use():
            return super().invoke(ctx)


# Errors of the user are one line (report_errors); a fault of ours is an ordinary traceback.
app = typer.Typer(
    cls=_Commands,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fxoffload {metadata.version('fxoffload')}")
        raise typer.Exit


@app.callback()
def set_up(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Check a machine, measure its drives, plan a training step, train, and show what it did.

    Exit codes: 0 all is well, 1 a budget or a check was missed, 2 wrong use.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(USAGE)


for _command in (doctor, probe, plan, train, report):
    app.command()(report_errors()(_command))

# What stands behind the name of a suite is for the suite.
app.command(context_settings={"allow_interspersed_args": False})(report_errors()(bench))
