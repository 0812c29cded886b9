"""Checks of a spill directory: on a disk, in memory, and without direct I/O."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxoffload.cli.directory_checks import check_free_space, check_spill_directory
from fxoffload.runtime.engines import spill_file

GIB = 2**30


def test_a_disk(spill_directory: Path) -> None:
    found = list(check_spill_directory(spill_directory))
    assert [each.subject.split()[0] for each in found] == ["directory", "direct", "free"]
    assert found[0].state == "ok"
    assert list(spill_directory.iterdir()) == []


def test_memory_is_a_problem_and_says_what_to_do() -> None:
    (found,) = check_spill_directory(Path("/dev/shm"))
    assert found.state == "problem"
    assert "tmpfs" in found.fact
    assert "disk" in found.remedy


def test_a_file_system_without_direct_io(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill_file, "_enable_direct", lambda _: None)
    (found,) = [e for e in check_spill_directory(spill_directory) if e.subject == "direct I/O"]
    assert found.state == "warning"
    assert found.remedy


def test_free_space() -> None:
    assert check_free_space(100 * GIB).state == "ok"
    assert check_free_space(GIB).state == "warning"
