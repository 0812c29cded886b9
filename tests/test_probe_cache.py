"""Speeds on disk: one process measures them once, and a faulty file raises no error."""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fxoffload.runtime.measurement import probe_cache
from fxoffload.runtime.measurement.probe_cache import cache_path, recall_pair


class Probe:
    """Measures other numbers each time."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> tuple[float, float]:
        self.calls += 1
        return self.calls * 1e9, self.calls * 2e9


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_measured_once_for_each_key() -> None:
    probe = Probe()
    assert recall_pair("a", probe) == recall_pair("a", probe) == (1e9, 2e9)
    assert recall_pair("b", probe) == (2e9, 4e9)
    assert recall_pair("a", probe) == (1e9, 2e9)
    assert probe.calls == 2
    assert stat.S_IMODE(cache_path().stat().st_mode) == 0o600
    assert stat.S_IMODE(cache_path().parent.stat().st_mode) == 0o700


def test_deleting_the_file_measures_again() -> None:
    probe = Probe()
    recall_pair("a", probe)
    cache_path().unlink()
    assert recall_pair("a", probe) == (2e9, 4e9)


def test_old_numbers_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    probe, now = Probe(), time.time()
    recall_pair("a", probe)
    monkeypatch.setattr(time, "time", lambda: now + probe_cache.MAX_AGE_SECONDS - 60)
    recall_pair("b", probe)
    assert recall_pair("a", probe) == (1e9, 2e9)
    monkeypatch.setattr(time, "time", lambda: now + probe_cache.MAX_AGE_SECONDS + 60)
    assert recall_pair("a", probe) == (3e9, 6e9)
    assert recall_pair("b", probe) == (2e9, 4e9)


def test_the_default_is_in_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_path() == tmp_path / ".cache" / "fxoffload" / "speeds.json"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "longer than what is written" * 100,
        "[1, 2]",
        "\xff",
        '{"a": [1e9, 2e',
        '{"a": 5}',
        '{"a": [1e9, 1e9]}',
        '{"a": [1e9, 1e9, 1e12, 1e12]}',
        '{"a": [1e9, -1, 1e12]}',
        '{"a": [NaN, 1e9, 1e12]}',
        '{"a": [1e9, Infinity, 1e12]}',
        '{"a": ["1e9", "1e9", 1e12]}',
    ],
)
def test_a_corrupt_file_is_written_anew(text: str) -> None:
    cache_path().parent.mkdir(parents=True)
    cache_path().write_text(text, encoding="latin-1")
    probe = Probe()
    assert recall_pair("a", probe) == (1e9, 2e9)
    assert recall_pair("a", probe) == (1e9, 2e9)
    assert probe.calls == 1


def test_a_corrupt_entry_leaves_the_others() -> None:
    cache_path().parent.mkdir(parents=True)
    cache_path().write_text(f'{{"a": [3.0, 4.0, {time.time()}], "b": null}}')
    probe = Probe()
    assert recall_pair("b", probe) == (1e9, 2e9)
    assert recall_pair("a", probe) == (3.0, 4.0)
    assert probe.calls == 1


def test_a_place_that_cannot_be_opened_only_costs_the_probe(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache_path().parent.parent.mkdir()
    cache_path().parent.write_text("a file where the folder should be")
    probe = Probe()
    with caplog.at_level(logging.INFO, "fxoffload.runtime.measurement.probe_cache"):
        assert recall_pair("a", probe) == (1e9, 2e9)
        assert recall_pair("a", probe) == (1e9, 2e9)
        assert recall_pair("b", probe) == (2e9, 4e9)
    assert probe.calls == 2
    assert "measured by each process" in caplog.text


def refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_that_cannot_be_read_is_written_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Probe()
    with monkeypatch.context() as patch:
        patch.setattr(probe_cache.os, "pread", refuse)
        assert recall_pair("a", probe) == (1e9, 2e9)
    assert recall_pair("a", probe) == (1e9, 2e9)
    assert probe.calls == 1


@pytest.mark.parametrize("call", ["flock", "ftruncate", "pwrite"])
def test_a_file_that_cannot_be_locked_or_written_only_costs_the_probe(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(probe_cache.fcntl if call == "flock" else probe_cache.os, call, refuse)
    probe = Probe()
    for _ in range(2):
        assert recall_pair("a", probe) == (1e9, 2e9)
    assert probe.calls == 1
    assert set(os.listdir("/proc/self/fd")) == before


def test_an_error_of_the_probe_is_raised_and_nothing_kept() -> None:
    def fail() -> tuple[float, float]:
        raise OSError(errno.EIO, "broken")

    with pytest.raises(OSError, match="broken"):
        recall_pair("a", fail)
    assert recall_pair("a", Probe()) == (1e9, 2e9)


def test_of_many_at_once_one_measures() -> None:
    """Each call opens the file itself, so the lock holds between threads as between processes."""
    probe, together = Probe(), threading.Barrier(4)

    def slow() -> tuple[float, float]:
        found = probe()
        time.sleep(0.05)
        return found

    def ask(_: int) -> tuple[float, float]:
        together.wait(30)
        return recall_pair("a", slow)

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(ask, range(4))) == {(1e9, 2e9)}
    assert probe.calls == 1


def test_a_child_that_was_forked_meanwhile_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has the descriptor of the locked file for as long as it lives."""
    monkeypatch.setattr(probe_cache, "LOCK_SECONDS", 0.0)
    reader, writer = os.pipe()
    children: list[int] = []

    def measure() -> tuple[float, float]:
        child = os.fork()
        if child == 0:
            os.read(reader, 1)
            os._exit(0)
        children.append(child)
        return 1e9, 2e9

    probe = Probe()
    try:
        assert recall_pair("a", measure) == (1e9, 2e9)
        assert recall_pair("a", probe) == (1e9, 2e9)
        assert probe.calls == 0
    finally:
        os.write(writer, b".")
        os.waitpid(children[0], 0)
        os.close(reader)
        os.close(writer)


def test_who_waits_too_long_for_others_measures(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(probe_cache, "LOCK_SECONDS", 0.0)
    inner = Probe()

    def measure() -> tuple[float, float]:
        return recall_pair("a", inner)  # The file is locked by the outer call.

    with caplog.at_level(logging.INFO, "fxoffload"):
        assert recall_pair("a", measure) == (1e9, 2e9)
    assert inner.calls == 1
    assert "measured by each process" in caplog.text
