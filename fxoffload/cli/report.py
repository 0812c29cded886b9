"""The command that shows a report which a job has saved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxoffload.cli.output import JsonOption
from fxoffload.errors import ReportError
from fxoffload.inspection.report import Report


def report(
    file: Annotated[Path, typer.Argument(help="What fxoffload.report().to_json() returned.")],
    html: Annotated[Path | None, typer.Option(help="Write a page to this file.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write Chrome trace events to this file.")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Add the events of this trace of torch.profiler to it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the report of a step as text, or write it as a page or a trace."""
    if profile is not None and trace is None:
        raise ReportError("--profile adds to a trace; pass --trace FILE, too")
    found = read_report(file)
    try:
        if html is not None:
            found.save_html(html)
        if trace is not None:
            found.save_trace(trace, profile)
    except OSError as error:
        raise ReportError(f"{error.filename}: {error.strerror}; name another file") from error
    if as_json:
        typer.echo(found.to_json())
    elif html is None and trace is None:
        typer.echo(str(found))


def read_report(file: Path) -> Report:
    """The report in `file`. Raises ReportError where there is none."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ReportError(
            f"{file} cannot be read ({reason}); name a file that has what "
            "fxoffload.report().to_json() returned"
        ) from error
    try:
        return Report.from_json(text)
    except ReportError as error:
        raise ReportError(f"{file}: {error}") from error
