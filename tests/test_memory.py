"""The memory engine: copies, capacity, close."""

from __future__ import annotations

import numpy as np
import pytest

from fxoffload.errors import StoreFull
from fxoffload.runtime.memory import MemoryEngine


def test_bytes_come_back_at_any_alignment() -> None:
    engine = MemoryEngine(1 << 20)
    rng = np.random.default_rng(0)
    stored = {}
    for nbytes in (1, 63, 64, 65, 4097, 100_001):
        data = rng.integers(0, 256, nbytes, np.uint8)
        offset = engine.allocate(nbytes)
        assert engine.write(memoryview(data), offset).result() == nbytes
        stored[offset] = data
    for offset, data in stored.items():
        back = np.empty_like(data)
        assert engine.read(memoryview(back), offset).result() == len(data)
        assert np.array_equal(back, data)
        engine.free(offset)
    assert engine.end_bytes == 0
    engine.close()
    engine.close()


def test_capacity() -> None:
    engine = MemoryEngine(1000)
    offset = engine.allocate(900)
    with pytest.raises(StoreFull, match=r"need 1\.2 KiB, the limit is 1000 B"):
        engine.allocate(200)
    engine.free(offset)
    engine.allocate(1000 // 64 * 64)
    engine.reserve(1000)
    with pytest.raises(StoreFull, match="raise host_budget"):
        engine.reserve(1001)
    engine.close()


def test_default_capacity_costs_nothing_until_used() -> None:
    engine = MemoryEngine()
    engine.reserve(2**30)
    engine.close()


def test_no_capacity_holds_nothing() -> None:
    engine = MemoryEngine(0)
    with pytest.raises(StoreFull):
        engine.allocate(1)
    engine.close()
