"""Tests of the memory engine: copies, capacity, close."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from engine_contract import EngineContract

from fxoffload.errors import StoreFull
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.engines.memory_limit import find_memory_limit


class TestContract(EngineContract):
    @pytest.fixture
    def engine(self) -> Iterator[MemoryEngine]:
        engine = MemoryEngine(2**29)
        yield engine
        engine.close()


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
    assert engine.capacity_bytes == find_memory_limit() // 2, "as for a file system in memory"
    engine.reserve(2**30)
    engine.close()


def fill_round(engine: MemoryEngine, *sizes: int) -> None:
    """Slots of these sizes are taken, filled and freed again."""
    offsets = [engine.allocate(nbytes) for nbytes in sizes]
    for offset, nbytes in zip(offsets, sizes, strict=True):
        engine.write(memoryview(bytes(nbytes)), offset).result()
    for offset in offsets:
        engine.free(offset)


def resident_bytes(engine: MemoryEngine) -> int:
    """Of the pool's pages, as the kernel counts them."""
    address = engine._memory.ctypes.data
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        first = line.split()[0]
        if re.fullmatch(r"[0-9a-f]+-[0-9a-f]+", first):
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= address < end
        elif inside and first == "Rss:":
            return int(line.split()[1]) * 1024
    raise AssertionError("the pool is not mapped")


def test_pages_that_two_rounds_did_not_use_go_back() -> None:
    engine = MemoryEngine(2**26)
    fill_round(engine, 2**20, 2**23)
    assert engine.held_bytes == 2**20 + 2**23
    assert resident_bytes(engine) >= 2**23
    fill_round(engine, 2**20)
    assert engine.held_bytes == 2**20 + 2**23, "the round before used it"
    resident = resident_bytes(engine)
    fill_round(engine, 2**20)
    assert engine.held_bytes == 2**20
    assert resident - resident_bytes(engine) == 2**23
    fill_round(engine, 2**23)
    assert engine.held_bytes == 2**23
    engine.close()


def test_no_page_goes_back_while_a_slot_is_held() -> None:
    engine = MemoryEngine(2**26)
    fill_round(engine, 2**23)
    held = engine.allocate(100)
    engine.write(memoryview(b"x" * 100), held).result()
    for _ in range(4):
        fill_round(engine, 2**20)
    assert engine.held_bytes == 2**23
    back = bytearray(100)
    engine.read(memoryview(back), held).result()
    assert back == b"x" * 100
    engine.free(held)
    engine.close()


def test_memory_is_bounded_by_the_capacity() -> None:
    """Whatever sizes come in whatever order: what does not fit is refused, nothing grows."""
    engine = MemoryEngine(2**22)
    rng = np.random.default_rng(0)
    held: list[int] = []
    refused = 0
    for _ in range(2000):
        if held and rng.random() < 0.5:
            engine.free(held.pop(rng.integers(len(held))))
            continue
        try:
            held.append(engine.allocate(int(rng.integers(1, 2**20))))
        except StoreFull:
            refused += 1
        assert engine.end_bytes <= engine.held_bytes <= 2**22
    assert refused > 100
    engine.close()


def test_no_capacity_holds_nothing() -> None:
    engine = MemoryEngine(0)
    with pytest.raises(StoreFull):
        engine.allocate(1)
    engine.close()
