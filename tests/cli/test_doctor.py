"""The command doctor: findings as text and JSON, and exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import check_usage_error, run

from fxoffload.cli import doctor
from fxoffload.cli.findings import Finding, State


def pretend(monkeypatch: pytest.MonkeyPatch, *states: State) -> None:
    """Let the checks of software find these; those of the host find nothing."""

    def check() -> Iterator[Finding]:
        yield from (Finding(f"check {state}", state, "fact", "remedy") for state in states)

    monkeypatch.setattr(doctor, "check_software", check)
    monkeypatch.setattr(doctor, "check_host", lambda: [])


@pytest.mark.parametrize(
    ("states", "code"), [(("ok",), 0), (("ok", "warning"), 0), (("problem", "ok"), 1)]
)
def test_a_problem_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, spill_directory: Path, states: tuple[State, ...], code: int
) -> None:
    pretend(monkeypatch, *states)
    text = run("doctor", "--directory", str(spill_directory))
    assert text.exit_code == code
    assert "-> remedy" in text.stdout
    result = run("doctor", "--directory", str(spill_directory), "--json")
    assert result.exit_code == code
    data = json.loads(result.stdout)
    assert data["problems"] == states.count("problem")
    assert data["findings"][0] == {
        "subject": f"check {states[0]}",
        "state": states[0],
        "fact": "fact",
        "remedy": "remedy",
    }
    assert data["findings"][len(states)]["subject"] == f"directory {spill_directory}"


def test_memory_in_place_of_a_disk_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "ok")
    result = run("doctor", "--directory", "/dev/shm")
    assert result.exit_code == 1
    assert "tmpfs" in result.stdout


def test_missing_directory_is_wrong_use(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    check_usage_error(run("doctor", "--directory", missing), missing, "create it")
