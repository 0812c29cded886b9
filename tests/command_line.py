"""Runs commands of the command line in this process."""

from __future__ import annotations

from click.testing import Result
from typer.testing import CliRunner

from fxoffload.cli.app import app


def run(*arguments: str) -> Result:
    """The result of `fxoffload ARGUMENTS`."""
    return CliRunner().invoke(app, list(arguments), prog_name="fxoffload")


def check_usage_error(result: Result, *words: str) -> None:
    """One line on stderr with `words`, no traceback, exit code 2, and nothing on stdout."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("fxoffload: ")
    assert "Traceback" not in line
    for word in words:
        assert word in line
