"""The application: its commands, its help, and what is no command."""

from __future__ import annotations

import pytest
from command_line import run

COMMANDS = ("doctor", "probe", "plan", "train", "report")


def test_help_names_every_command() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert command in result.stdout
    assert "--install-completion" in result.stdout


def test_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout.split()[0]) == (0, "fxoffload")
    assert len(result.stdout.split()) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_its_help_and_json(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout


def test_what_is_no_command_is_wrong_use() -> None:
    result = run("docter")
    assert result.exit_code == 2
    assert "No such command" in result.stderr
    assert "Traceback" not in result.output


def test_a_fault_of_ours_is_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxoffload.cli.doctor.check_host", lambda: 1 / 0)
    result = run("doctor")
    assert isinstance(result.exception, ZeroDivisionError)
