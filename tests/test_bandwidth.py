"""The bandwidth probe: its numbers are positive and rounded, and no slot stays allocated."""

from __future__ import annotations

import itertools
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from flaky_engine import FlakyEngine

from fxoffload.errors import StoreFull
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.engines.workers import Transfer
from fxoffload.runtime.measurement import bandwidth
from fxoffload.runtime.measurement.bandwidth import (
    Bandwidth,
    Batch,
    measure_bandwidth,
    round_down,
    sample_transfers,
    take_slots,
)


# What the probe asks for first, and a quarter of that: smaller slots do too.
@pytest.mark.parametrize("capacity", [2**23, 2**20])
def test_bandwidth_is_positive_and_has_two_digits(
    monkeypatch: pytest.MonkeyPatch, capacity: int
) -> None:
    monkeypatch.setattr(bandwidth, "PROBE_BYTES", 2**20)
    engine = MemoryEngine(capacity)
    for value in measure_bandwidth(engine):
        assert value > 0
        assert len(f"{value:.0f}".rstrip("0")) <= 2
    assert engine.end_bytes == 0
    engine.close()


@pytest.mark.parametrize("disturbed", [0, 3, 5])
def test_rounds_that_are_disturbed_do_not_count(
    monkeypatch: pytest.MonkeyPatch, disturbed: int
) -> None:
    good = [*([0.1, 0.2] * (6 - disturbed)), 0.01, 0.02]  # One that is too good does not, either.
    seconds = iter([1.0, *([10.0, 20.0] * disturbed), *good])
    monkeypatch.setattr(bandwidth, "PROBE_BYTES", 2**20)
    monkeypatch.setattr(bandwidth, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(bandwidth, "_time_all", lambda *_: Batch(next(seconds), ()))
    engine = MemoryEngine(2**21)
    nbytes = bandwidth.PROBE_COUNT * 2**19  # Larger slots have no room.
    assert measure_bandwidth(engine) == (
        round_down(nbytes / 0.1, digits=2), round_down(nbytes / 0.2, digits=2)
    )  # fmt: skip
    engine.close()


def test_each_transfer_of_a_batch_has_its_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """They overlap, so that none takes longer than the batch, and all together no less."""
    monkeypatch.setattr(bandwidth, "PAUSE_SECONDS", 0.0)
    engine = MemoryEngine(2**23)
    slots = take_slots(engine, 2**18)
    assert slots.nbytes == 2**18
    rounds = sample_transfers(engine, slots, rounds=3)
    assert len(rounds) == 3
    for batch in (each for pair in rounds for each in pair):
        assert len(batch.latencies_seconds) == bandwidth.PROBE_COUNT
        assert 0 < min(batch.latencies_seconds) <= max(batch.latencies_seconds)
        assert max(batch.latencies_seconds) < batch.seconds + 0.5  # A callback may run late.
        assert sum(batch.latencies_seconds) > 0.5 * batch.seconds
    engine.close()


def test_latencies_run_from_the_start_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading of the clock is a second after the one before; transfers end at once."""
    clock = itertools.count()
    monkeypatch.setattr(bandwidth.time, "perf_counter", lambda: float(next(clock)))

    def move(offset: int) -> Future[int]:
        future: Future[int] = Future()
        future.set_result(0)
        return future

    assert bandwidth._time_all([move] * 3, [0] * 3) == Batch(7.0, (1.0,) * 3)


def test_rounds_are_spread_over_time_until_it_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(bandwidth.time, "sleep", pauses.append)
    engine = MemoryEngine(2**23)
    slots = take_slots(engine, 4096)
    assert len(sample_transfers(engine, slots, rounds=3)) == 3
    assert pauses == 2 * [bandwidth.PAUSE_SECONDS]
    assert len(sample_transfers(engine, slots, rounds=3, limit_seconds=0.0)) == 1
    engine.close()


def test_the_quartile_is_one_of_the_samples() -> None:
    assert bandwidth._find_lower_quartile([4.0, 1.0, 3.0, 2.0]) == 1.0
    assert bandwidth._find_lower_quartile([5.0, 4.0, 1.0, 3.0, 2.0]) == 2.0


def test_slots_are_as_large_as_there_is_room() -> None:
    for nbytes in (2**19, 4096):
        engine = MemoryEngine(bandwidth.PROBE_COUNT * nbytes)
        assert take_slots(engine, 2**20).nbytes == nbytes
        engine.close()


@pytest.mark.parametrize("direction", ["write", "read"])
def test_an_engine_that_fails_is_not_measured(direction: str) -> None:
    engine = MemoryEngine(2**23)
    flaky = FlakyEngine(engine, **{f"{direction}_failures": 1})
    with pytest.raises(OSError, match="No space" if direction == "write" else "Input/output"):
        measure_bandwidth(flaky)
    assert engine.end_bytes == 0
    engine.close()


def test_an_engine_without_room_cannot_be_measured() -> None:
    engine = MemoryEngine(4096)
    with pytest.raises(StoreFull):
        measure_bandwidth(engine)
    assert engine.end_bytes == 0
    engine.close()


def test_the_probe_moves_private_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As tensors have it: direct I/O of shared pages costs something else.

    Each slot has its own bytes, which do not compress.
    """
    monkeypatch.setattr(bandwidth, "PROBE_BYTES", 2**20)
    permissions: set[str] = set()
    addresses: set[int] = set()

    class Looking(MemoryEngine):
        def _look(self, view: memoryview) -> None:
            values = np.frombuffer(view, np.uint8)
            assert np.bincount(values, minlength=256).max() < len(view) / 128
            address = values.ctypes.data
            addresses.add(address)
            for line in Path("/proc/self/maps").read_text().splitlines():
                place, kind, *_ = line.split()
                start, end = (int(part, 16) for part in place.split("-"))
                if start <= address < end:
                    permissions.add(kind)

        def write(self, view: memoryview, offset: int) -> Transfer:
            self._look(view)
            return super().write(view, offset)

        def read(self, view: memoryview, offset: int) -> Transfer:
            self._look(view)
            return super().read(view, offset)

    engine = Looking(2**23)
    measure_bandwidth(engine)
    engine.close()
    assert permissions == {"rw-p"}
    assert len(addresses) == bandwidth.PROBE_COUNT


@pytest.mark.parametrize(
    ("value", "expected"), [(1.0, 1.0), (9.99e8, 9e8), (1e9, 1e9), (123456.0, 1e5), (4.5e10, 4e10)]
)
def test_round_down(value: float, expected: float) -> None:
    assert round_down(value) == expected


def test_round_down_to_more_digits() -> None:
    assert round_down(1.999e11, digits=2) == 1.9e11


def test_round_trip_is_slower_than_either_way() -> None:
    assert Bandwidth(2e9, 2e9).round_trip == pytest.approx(1e9)
    assert Bandwidth(1e9, 3e9).round_trip == pytest.approx(7.5e8)
