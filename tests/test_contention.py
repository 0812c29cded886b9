"""The contention probe: the loss per byte is measured and kept, and the probe leaves nothing."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fxoffload.config import IOEngineName, OffloadConfig
from fxoffload.errors import StoreFull
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.engines.workers import Transfer
from fxoffload.runtime.measurement import contention
from fxoffload.runtime.measurement.choice import choose_engine
from fxoffload.runtime.measurement.contention import (
    Contention,
    measure_contention,
    recall_contention,
)
from fxoffload.runtime.store.store import OffloadStore
from fxoffload.sizes import MIB


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


def test_a_round_compares_with_compute_before_and_behind(memory_store: OffloadStore) -> None:
    """On a machine that becomes slower: alone, beside writes, alone, beside reads, alone."""
    seconds = iter([10.0, 13.0, 12.0, 16.0, 14.0])

    def compute(move: Callable[[int], object] | None) -> float:
        if move is not None:
            move(0)
        return next(seconds)

    assert contention._run_round(memory_store, [torch.ones(4)], compute) == (2.0, 3.0)


def test_a_window_moves_all_values_in_its_first_half(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    products = iter([1.0, *[1e-3] * 1000])  # The first one warms up.
    monkeypatch.setattr(torch, "mm", lambda *_, out: clock.advance(next(products)))
    compute = contention._make_compute()
    start, moved = clock(), dict[int, float]()
    seconds = compute(lambda index: moved.update({index: clock() - start}))
    assert seconds == pytest.approx(contention.WINDOW_SECONDS, rel=0.05)
    assert moved == pytest.approx(
        {index: index * seconds / 2 / contention.VALUES for index in range(contention.VALUES)}
    )


def test_a_slow_machine_computes_one_product_beside_each_value(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "mm", lambda *_, out: clock.advance(1.0))
    assert contention._make_compute()(None) == 2 * contention.VALUES


def test_the_lower_quartile_counts() -> None:
    assert contention._find_typical([8.0, 1.0, 7.0, 2.0, 6.0, 3.0, 5.0, 4.0]) == 2.2


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
    assert contention.WINDOW_SECONDS / 4 < seconds <= contention.WINDOW_SECONDS / 2
    engine = GreedyEngine(clock, 0.0, 0.0, 2**30)
    probe(engine, bytes_per_second=1.0)
    assert engine.moved_bytes["read"] == contention.ROUNDS * contention.VALUES * 2**16, "at least"


def test_measured_once_on_a_machine(
    spill_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    counter = itertools.count(1)
    speeds: list[float] = []

    def measure(store: OffloadStore, bytes_per_second: float) -> Contention:
        speeds.append(bytes_per_second)
        return Contention(float(next(counter)), 1.0)

    monkeypatch.setattr(contention, "measure_contention", measure)

    def recall(engine: IOEngineName) -> float:
        return recall_contention(OffloadConfig(directory=spill_directory, ioengine=engine)).write

    chosen = choose_engine(OffloadConfig(directory=spill_directory, ioengine="posix"))
    before = set(os.listdir("/proc/self/fd"))
    assert [recall("posix"), recall("memory"), recall("posix")] == [1.0, 2.0, 1.0]
    assert speeds[0] == min(chosen.bandwidth)
    assert set(os.listdir("/proc/self/fd")) == before, "the store of the probe is closed"
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert recall("posix") == 3.0, "other threads lose something else"
    finally:
        torch.set_num_threads(threads)
    assert recall("posix") == 1.0
