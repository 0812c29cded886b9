"""Staging buffers, cut from pinned chunks: they do not overlap, are bounded, and are reused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxoffload import inflight
from fxoffload.runtime.devices import staging
from fxoffload.runtime.devices.buffers import STAGING_ALIGNMENT, StagingBuffer
from fxoffload.runtime.devices.staging import StagingArena
from fxoffload.sizes import MIB


class Memory:
    """Counts what was asked for; `shift` moves the addresses off the pages."""

    def __init__(self, shift: int = 0) -> None:
        self.shift = shift
        self.pinned: list[int] = []
        self.pageable: list[int] = []

    def allocate(self, nbytes: int, pinned: bool) -> torch.Tensor:
        (self.pinned if pinned else self.pageable).append(nbytes)
        memory = torch.empty(nbytes + 2 * STAGING_ALIGNMENT, dtype=torch.uint8)
        start = -memory.data_ptr() % STAGING_ALIGNMENT + self.shift
        return memory[start : start + nbytes]


def find_range(buffer: StagingBuffer) -> range:
    start = buffer.tensor.data_ptr()
    return range(start, start + len(buffer.view))


def test_equal_demands_are_met_by_one_chunk() -> None:
    memory = Memory()
    arena = StagingArena(memory.allocate, 0, 256 * MIB)
    for _ in range(5):
        buffers = [arena.take(5 * MIB) for _ in range(10)]
        assert arena.used_bytes == 50 * MIB
        for buffer in buffers:
            arena.give(buffer)
    assert memory.pinned == [64 * MIB]  # A power of two: torch rounds up to one.
    assert memory.pageable == []
    assert (arena.pinned_bytes, arena.used_bytes) == (64 * MIB, 0)


def test_equal_steps_cut_no_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal buffers at one place are one object; only so many are kept."""
    monkeypatch.setattr(staging, "MOST_CUTS", 3)
    arena = StagingArena(Memory().allocate, 0, 256 * MIB)
    first = arena.take(MIB)
    arena.give(first)
    assert arena.take(MIB) is first
    other = arena.take(MIB)
    assert other.tensor.data_ptr() == first.tensor.data_ptr() + MIB
    arena.give(first)
    shorter = arena.take(4096)
    assert (shorter.tensor.data_ptr(), len(shorter.view)) == (first.tensor.data_ptr(), 4096)
    arena.give(shorter)
    arena.give(arena.take(8192))
    assert arena.take(MIB) is not first
    assert arena.take(MIB).tensor.data_ptr() == other.tensor.data_ptr() + MIB


def test_beyond_the_bound_memory_is_pageable() -> None:
    memory = Memory()
    arena = StagingArena(memory.allocate, 0, 3 * MIB)
    buffers = [arena.take(MIB) for _ in range(4)]
    assert memory.pinned == [2 * MIB, MIB]
    assert memory.pageable == [MIB]
    assert arena.pinned_bytes == 3 * MIB
    for buffer in buffers:
        arena.give(buffer)
    assert arena.used_bytes == 0
    arena.take(MIB)
    assert memory.pageable == [MIB]


def test_three_of_the_largest_values_are_pinned_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflight, "LEAST_CAP_BYTES", MIB)
    memory = Memory()
    arena = StagingArena(memory.allocate, MIB, None)  # One MiB more is for a host tier.
    for _ in range(8):
        arena.take(2 * MIB)
    assert memory.pinned == [4 * MIB, 2 * MIB], "what is left of seven is too small for a value"
    assert memory.pageable == [2 * MIB] * 5


def test_refused_pinning_is_said_once_and_memory_is_pageable() -> None:
    memory = Memory()

    def refuse(nbytes: int, pinned: bool) -> torch.Tensor:
        if pinned and sum(memory.pinned) + nbytes > 8 * MIB:
            raise RuntimeError("CUDA error: out of memory")
        return memory.allocate(nbytes, pinned)

    arena = StagingArena(refuse, 0, 256 * MIB)
    with pytest.warns(RuntimeWarning, match=r"8\.0 MiB .*refused: CUDA error.*memlock") as said:
        buffers = [arena.take(5 * MIB) for _ in range(3)]
    assert len(said) == 1
    assert memory.pinned == [8 * MIB], "smaller chunks are tried"
    assert memory.pageable == [5 * MIB, 5 * MIB]
    assert arena.pageable_bytes == 10 * MIB
    for buffer in buffers:
        arena.give(buffer)
    arena.take(3 * MIB)
    assert arena.pageable_bytes == 10 * MIB, "what was pinned is still used"


def test_a_value_larger_than_a_chunk_has_one_of_its_own() -> None:
    memory = Memory()
    arena = StagingArena(memory.allocate, 0, 256 * MIB)
    arena.take(65 * MIB)
    assert memory.pinned == [128 * MIB]


@given(
    shift=st.sampled_from([0, 64]),
    sizes=st.lists(st.tuples(st.integers(0, 40_000), st.booleans()), max_size=30),
)
def test_buffers_in_use_do_not_overlap(shift: int, sizes: list[tuple[int, bool]]) -> None:
    arena = StagingArena(Memory(shift).allocate, 0, 2**17)
    held: list[StagingBuffer] = []
    for nbytes, keep in sizes:
        buffer = arena.take(nbytes)
        taken = find_range(buffer)
        assert len(taken) == nbytes
        assert buffer.tensor.numel() == nbytes
        assert taken.start % STAGING_ALIGNMENT == 0
        for other in map(find_range, held):
            assert taken.stop <= other.start or other.stop <= taken.start or nbytes == 0
        held.append(buffer)
        if not keep:
            arena.give(held.pop(0))
        assert arena.pinned_bytes <= 2**17
    for buffer in held:
        arena.give(buffer)
    assert arena.used_bytes == 0
