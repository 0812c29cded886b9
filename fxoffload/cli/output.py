"""What the commands share: tables, JSON, progress, and errors as one line and an exit code."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fxoffload.errors import BudgetError, OffloadError, StoreError

MISSED = 1  # A budget or a check was missed.
USAGE = 2  # As typer and click have it.

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
BudgetOption = Annotated[
    str | None,
    typer.Option("--memory-budget", "--budget", help='Of the activation peak: "8GiB" or min.'),
]


@contextmanager
def report_errors() -> Generator[None]:
    """Turn an error of the user into one line on stderr: exit 1 for a missed budget, else 2."""
    try:
        yield
    except OffloadError as error:
        print_error(str(error))
        missed = isinstance(error, BudgetError | StoreError)
        raise typer.Exit(MISSED if missed else USAGE) from None


def print_error(message: str) -> None:
    """Print `message` as one line on stderr."""
    typer.echo(f"fxoffload: {' '.join(message.split())}", err=True)


def print_json(data: Any) -> None:
    """Print `data` as JSON on stdout."""
    typer.echo(json.dumps(data, indent=2, default=str))


@contextmanager
def show_progress() -> Generator[Progress]:
    """A display of tasks on stderr, with the time so far; nothing unless stderr is a terminal.

    A task without a total is shown as a bar that moves.
    """
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        yield progress
