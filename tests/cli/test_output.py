"""Errors of the user are one line and an exit code; others pass."""

from __future__ import annotations

import json

import pytest
import typer

from fxoffload.cli.output import print_json, report_errors, show_progress
from fxoffload.errors import BudgetError, ConfigError, OffloadError, StoreFull


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a\nb"), 2),
        (OffloadError("a\nb"), 2),
        (BudgetError("a\nb"), 1),
        (StoreFull("a\nb"), 1),
    ],
)
def test_errors_become_exit_codes(
    capsys: pytest.CaptureFixture[str], error: OffloadError, code: int
) -> None:
    with pytest.raises(typer.Exit) as ended, report_errors():
        raise error
    assert ended.value.exit_code == code
    assert capsys.readouterr() == ("", "fxoffload: a b\n")


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), report_errors():
        raise ZeroDivisionError


def test_json_is_on_stdout_and_progress_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress() as progress:
        progress.add_task("long", total=None)
        print_json({"bytes": 1})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"bytes": 1}
    assert err == ""  # It is no terminal.
