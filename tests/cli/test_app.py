"""The application: its commands, its help, and what is no command."""

from __future__ import annotations

import pytest
from command_line import check_usage_error, run

COMMANDS = ("doctor", "probe", "plan", "train", "report", "bench")


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("docter",), ("No such command 'docter'", "doctor", "fxoffload --help")),
        (("--nope",), ("No such option", "--nope")),
        (("probe",), ("Missing argument", "DIR", "fxoffload probe --help")),
        (("probe", "/tmp", "--ioengine", "fast"), ("--ioengine", "'fast'", "posix")),
        (("plan",), ("Missing argument",)),
        (("plan", "gpt2", "--batch", "x"), ("--batch", "fxoffload plan --help")),
        (("plan", "gpt2", "--batch", "0"), ("--batch",)),
        (("doctor", "--directory"), ("--directory", "requires an argument")),
        (("train",), ("Missing argument",)),
        (("train", "x.txt", "--model", "gru"), ("--model", "'gru'", "llama")),
        (("train", "x.txt", "--steps", "1"), ("--steps",)),
        (("report",), ("Missing argument",)),
        (("report", "x.json", "y.json"), ("unexpected extra argument",)),
    ],
)
def test_wrong_arguments_are_one_line(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    check_usage_error(run(*arguments), *words)


def test_without_a_command_it_prints_its_help_and_that_is_wrong_use() -> None:
    result = run()
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == run("--help").stdout


def test_a_fault_of_ours_is_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxoffload.cli.doctor.check_host", lambda: 1 / 0)
    result = run("doctor")
    assert isinstance(result.exception, ZeroDivisionError)
