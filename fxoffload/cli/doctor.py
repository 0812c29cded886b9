"""The command that checks this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fxoffload.cli.directory_checks import check_spill_directory
from fxoffload.cli.findings import Finding, State
from fxoffload.cli.host_checks import check_host
from fxoffload.cli.output import MISSED, JsonOption, print_json
from fxoffload.cli.software_checks import check_software
from fxoffload.config import OffloadConfig
from fxoffload.errors import ConfigError

_STYLES: dict[State, str] = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def doctor(
    directory: Annotated[
        list[Path] | None,
        typer.Option(help="A spill directory; by default the one that training would use."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine, and say what to do about what is wrong. Exit code 1 for a problem."""
    found = [*check_software(), *check_host()]
    for path in find_directories(directory or ()):
        found += check_spill_directory(path)
    problems = sum(finding.state == "problem" for finding in found)
    warned = sum(finding.state == "warning" for finding in found)
    if as_json:
        findings = [dataclasses.asdict(finding) for finding in found]
        print_json({"problems": problems, "warnings": warned, "findings": findings})
    else:
        print_findings(found)
        typer.echo(f"{problems} problem(s), {warned} warning(s)")
    if problems:
        raise typer.Exit(MISSED)


def find_directories(given: Sequence[Path]) -> tuple[Path, ...]:
    """The directories `given`, or those of the default options; raises ConfigError if one lacks."""
    config = OffloadConfig.from_options({"directory": list(given)} if given else None)
    for path in config.directories:
        if not path.is_dir():
            raise ConfigError(f"{path} is not a directory; create it or name another")
    return config.directories


def print_findings(findings: Sequence[Finding]) -> None:
    """Print a table, in which each remedy is below its fact."""
    table = Table(box=None, pad_edge=False)
    for heading in ("check", "state", "found"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        fact = Text(finding.fact)
        if finding.remedy:
            fact.append(f"\n-> {finding.remedy}", style="bold")
        table.add_row(finding.subject, Text(finding.state, style=_STYLES[finding.state]), fact)
    Console().print(table)
