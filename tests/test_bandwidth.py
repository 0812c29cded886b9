"""The bandwidth probe: its numbers are positive and rounded, and no slot stays allocated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

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
    seconds = iter([1.0, *([10.0, 20.0] * disturbed), *([0.1, 0.2] * (7 - disturbed))])
    monkeypatch.setattr(bandwidth, "PROBE_BYTES", 2**20)
    monkeypatch.setattr(bandwidth, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(bandwidth, "_time_all", lambda *_: Batch(next(seconds), ()))
    engine = MemoryEngine(2**23)
    nbytes = bandwidth.PROBE_COUNT * 2**20
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


def test_an_engine_without_room_cannot_be_measured() -> None:
    engine = MemoryEngine(4096)
    with pytest.raises(StoreFull):
        measure_bandwidth(engine)
    assert engine.end_bytes == 0
    engine.close()


def test_the_probe_moves_private_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As tensors have it: direct I/O of shared pages costs something else."""
    monkeypatch.setattr(bandwidth, "PROBE_BYTES", 2**20)
    permissions: set[str] = set()

    class Looking(MemoryEngine):
        def _look(self, view: memoryview) -> None:
            address = np.frombuffer(view, np.uint8).ctypes.data
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
