"""The choice of an engine, outcomes of futures, and the bandwidth probe."""

from __future__ import annotations

import errno
import os
from concurrent.futures import Future
from pathlib import Path

import pytest

from fxoffload.config import IOEngineName, OffloadConfig
from fxoffload.errors import ConfigError, StoreFull
from fxoffload.runtime import bandwidth, ioengine
from fxoffload.runtime.bandwidth import measure_bandwidth, round_down
from fxoffload.runtime.ioengine import find_outcome, open_engine
from fxoffload.runtime.memory import MemoryEngine
from fxoffload.runtime.posix import PosixEngine
from fxoffload.runtime.spill_file import SpillFile


@pytest.mark.parametrize("name", ["posix", "auto"])
def test_posix_over_all_directories(tmp_path: Path, name: IOEngineName) -> None:
    directories = [tmp_path / "a", tmp_path / "b"]
    for directory in directories:
        directory.mkdir()
    engine = open_engine(OffloadConfig(directory=directories, ioengine=name))
    assert isinstance(engine, PosixEngine)
    places = {engine.describe(engine.allocate(1)).split(" at ")[0] for _ in range(2)}
    assert places == {f"the spill file in {directory}" for directory in directories}
    engine.close()


def test_memory_is_capped_by_the_host_budget() -> None:
    engine = open_engine(OffloadConfig(ioengine="memory", host_budget=4096))
    assert engine.name == "memory"
    engine.reserve(4096)
    with pytest.raises(StoreFull, match="the limit is 4\\.0 KiB"):
        engine.reserve(4097)
    engine.close()


def test_kvikio_is_refused_with_a_remedy() -> None:
    with pytest.raises(ConfigError, match='no kvikio engine; pass "posix" or "auto"'):
        open_engine(OffloadConfig(ioengine="kvikio"))


def test_every_directory_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing"):
        open_engine(OffloadConfig(directory=[tmp_path, tmp_path / "missing"]))


def test_a_failed_opening_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directories = [tmp_path / "a", tmp_path / "b"]
    for directory in directories:
        directory.mkdir()

    def fail_in_b(directory: Path) -> SpillFile:
        if directory.name == "b":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return SpillFile(directory)

    monkeypatch.setattr(ioengine, "SpillFile", fail_in_b)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Input/output"):
        open_engine(OffloadConfig(directory=directories))
    assert set(os.listdir("/proc/self/fd")) == before


def test_outcomes() -> None:
    moved: Future[int] = Future()
    moved.set_result(5)
    failed: Future[int] = Future()
    error = OSError(errno.EIO, "broken")
    failed.set_exception(error)
    cancelled: Future[int] = Future()
    cancelled.cancel()
    assert [find_outcome(future) for future in (moved, failed, cancelled)] == [5, error, None]
    surprise: Future[int] = Future()
    surprise.set_exception(ValueError("not an I/O error"))
    with pytest.raises(ValueError, match="not an I/O error"):
        find_outcome(surprise)


def test_bandwidth_is_positive_and_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "PROBE_BYTES", 2**20)
    engine = MemoryEngine(2**23)
    for value in measure_bandwidth(engine):
        assert value > 0
        assert len(f"{value:.0f}".rstrip("0")) == 1
    assert engine.end_bytes == 0
    engine.close()


@pytest.mark.parametrize(
    ("value", "expected"), [(1.0, 1.0), (9.99e8, 9e8), (1e9, 1e9), (123456.0, 1e5), (4.5e10, 4e10)]
)
def test_round_down(value: float, expected: float) -> None:
    assert round_down(value) == expected
