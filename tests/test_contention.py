"""The contention probe: the loss per byte is measured and kept, and the probe leaves nothing."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from fxoffload.config import IOEngineName, OffloadConfig
from fxoffload.errors import StoreFull
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.engines.workers import Transfer
from fxoffload.runtime.measurement import contention
from fxoffload.runtime.measurement.contention import (
    Contention,
    measure_contention,
    recall_contention,
)
from fxoffload.runtime.store.store import OffloadStore

MIB = 2**20


class Clock:
    """Time that only passes when someone says so."""

    def __init__(self) -> None:
        self._now = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._now += seconds


class GreedyEngine(MemoryEngine):
    """Each transfer takes seconds per byte from what computes beside it."""

    def __init__(self, clock: Clock, write: float, read: float, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._clock, self._write, self._read = clock, write, read
        self.moved_bytes = {"write": 0, "read": 0}

    def write(self, view: memoryview, offset: int) -> Transfer:
        self.moved_bytes["write"] += len(view)
        self._clock.advance(self._write * len(view))
        return super().write(view, offset)

    def read(self, view: memoryview, offset: int) -> Transfer:
        self.moved_bytes["read"] += len(view)
        self._clock.advance(self._read * len(view))
        return super().read(view, offset)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """One for the probe, on which a product takes a millisecond."""
    clock = Clock()

    def multiply(left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor) -> None:
        clock.advance(1e-3)

    monkeypatch.setattr(contention.time, "perf_counter", clock)
    monkeypatch.setattr(torch, "mm", multiply)
    return clock


def probe(engine: MemoryEngine, bytes_per_second: float = 1e12) -> Contention:
    store = OffloadStore({"nvme": engine}, max_inflight_bytes=2**62)
    try:
        found = measure_contention(store, bytes_per_second)
        assert store.statistics().live_bytes == store.statistics().write_errors == 0
    finally:
        store.close()
    assert engine.end_bytes == 0
    return found


def test_what_is_lost_for_each_byte(clock: Clock) -> None:
    engine = GreedyEngine(clock, 3.55e-10, 2.55e-10, 2**30)
    found = probe(engine)
    assert found == pytest.approx((3.5e-10, 2.5e-10))  # Rounded down: equal in every process.
    assert found.mean == pytest.approx(3e-10)
    moved = contention.ROUNDS * contention.VALUES * contention.VALUE_BYTES
    assert engine.moved_bytes == pytest.approx({"write": moved, "read": moved})


def test_free_transfers_are_not_quite_free(clock: Clock) -> None:
    """What is kept on disk are numbers above 0."""
    assert 0.0 < probe(GreedyEngine(clock, 0.0, 0.0, 2**30)).mean < 1e-12


def test_little_room_is_enough(clock: Clock) -> None:
    engine = GreedyEngine(clock, 3.55e-10, 2.55e-10, 9 * MIB)
    assert probe(engine) == pytest.approx((3.5e-10, 2.5e-10))
    assert engine.moved_bytes["write"] == contention.ROUNDS * contention.VALUES * MIB


def test_the_programs_random_numbers_stay(clock: Clock) -> None:
    before = torch.get_rng_state()
    probe(GreedyEngine(clock, 0.0, 0.0, 2**30))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_room_there_is_no_number(clock: Clock) -> None:
    with pytest.raises(StoreFull):
        probe(GreedyEngine(clock, 0.0, 0.0, 4096))


def test_transfers_end_within_the_compute_beside_them(clock: Clock) -> None:
    engine = GreedyEngine(clock, 0.0, 0.0, 2**30)
    probe(engine, bytes_per_second=200 * MIB)
    seconds = engine.moved_bytes["read"] / contention.ROUNDS / (200 * MIB)
    assert seconds <= contention.WINDOW_SECONDS / 2


def test_measured_once_on_a_machine(
    spill_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    counter = itertools.count(1)

    def measure(*args: Any) -> Contention:
        return Contention(float(next(counter)), 1.0)

    monkeypatch.setattr(contention, "measure_contention", measure)

    def recall(engine: IOEngineName) -> float:
        return recall_contention(OffloadConfig(directory=spill_directory, ioengine=engine)).write

    assert [recall("posix"), recall("memory"), recall("posix")] == [1.0, 2.0, 1.0]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert recall("posix") == 3.0, "other threads lose something else"
    finally:
        torch.set_num_threads(threads)
    assert recall("posix") == 1.0
