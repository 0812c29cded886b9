"""Host tensors on their way: from their own memory or a staging buffer, and back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from round_trips import fill

from fxoffload.runtime.devices.buffers import StagingPool
from fxoffload.runtime.devices.host import DIRECT_BYTES, HostDevice, HostIncoming, HostOutgoing
from fxoffload.runtime.engines.memory import MemoryEngine

ALIGNMENT = 512
SMALL, LARGE = 1000, DIRECT_BYTES + 1000


@pytest.fixture
def pool() -> StagingPool:
    return StagingPool()


@pytest.fixture
def memory() -> Iterator[MemoryEngine]:
    engine = MemoryEngine(2**24)
    yield engine
    engine.close()


def make_at(phase: int, nbytes: int) -> torch.Tensor:
    """Bytes whose address modulo ALIGNMENT is `phase`."""
    memory = fill(nbytes + 2 * ALIGNMENT)
    start = (phase - memory.data_ptr()) % ALIGNMENT
    return memory[start : start + nbytes]


def write(outgoing: HostOutgoing, memory: MemoryEngine) -> int:
    """The slot that the bytes were written to."""
    slot = memory.allocate(outgoing.slot_bytes)
    assert outgoing.write(memory, slot).result() == outgoing.write_bytes
    return slot


def read(incoming: HostIncoming, memory: MemoryEngine, slot: int) -> torch.Tensor:
    assert incoming.read(memory, slot).result() == incoming.read_bytes
    incoming.finish()
    return incoming.y


def test_small_values_are_copied_at_once(pool: StagingPool, memory: MemoryEngine) -> None:
    x = fill(SMALL)
    expected = x.clone()
    outgoing = HostOutgoing(x, pool, ALIGNMENT)
    assert (outgoing.shares_memory, outgoing.layout.staged) == (False, True)
    assert outgoing.slot_bytes == outgoing.write_bytes == 1024
    x.zero_()
    slot = write(outgoing, memory)
    assert torch.equal(outgoing.forward().y, expected)
    assert outgoing.lend() is None
    assert pool.free_bytes == 0
    outgoing.close()
    assert pool.free_bytes > 0
    incoming = HostIncoming(outgoing.layout, pool, ALIGNMENT)
    assert pool.free_bytes == 0, "the buffer is reused"
    assert torch.equal(read(incoming, memory, slot), expected)
    assert pool.free_bytes > 0


@pytest.mark.parametrize("phase", [0, 64, 448])
def test_large_values_are_moved_in_place(
    phase: int, pool: StagingPool, memory: MemoryEngine
) -> None:
    """The aligned part of them; what stands before and behind it comes back from the layout."""
    x = make_at(phase, LARGE)
    expected = x.clone()
    outgoing = HostOutgoing(x, pool, ALIGNMENT)
    layout = outgoing.layout
    assert outgoing.shares_memory
    assert (layout.staged, layout.phase) == (False, phase)
    assert len(layout.head) == -phase % ALIGNMENT
    assert outgoing.write_bytes % ALIGNMENT == 0
    assert len(layout.head) + outgoing.write_bytes + len(layout.tail) == layout.span == LARGE
    slot = write(outgoing, memory)
    outgoing.close()
    incoming = HostIncoming(layout, pool, ALIGNMENT)
    y = read(incoming, memory, slot)
    assert torch.equal(y, expected)
    assert y.data_ptr() % ALIGNMENT == phase
    assert y.storage_offset() == 0
    assert len(incoming._view) == 0, "nothing holds the memory but y"


def test_equal_values_ask_for_equal_slots(pool: StagingPool) -> None:
    slots = {HostOutgoing(make_at(p, LARGE), pool, ALIGNMENT).slot_bytes for p in range(0, 512, 64)}
    assert len(slots) == 1


def test_a_kept_copy_is_apart_from_the_tensor(pool: StagingPool) -> None:
    x = fill(2 * LARGE).view(LARGE, 2).t()
    expected = x.clone()
    outgoing = HostOutgoing(x, pool, ALIGNMENT)
    outgoing.keep_copy()
    assert not outgoing.shares_memory
    x.zero_()
    y = outgoing.forward().y
    assert torch.equal(y, expected)
    assert y.stride() == x.stride()
    lent = outgoing.lend()
    assert lent is not None
    assert torch.equal(lent, expected)


def test_what_is_lent_starts_its_storage(pool: StagingPool) -> None:
    """Views are replayed by as_strided, which counts from there."""
    x = fill(2 * LARGE)
    lent = HostOutgoing(x, pool, ALIGNMENT).lend()
    assert lent is not None
    assert lent.data_ptr() == x.data_ptr()
    assert HostOutgoing(x[512:], pool, ALIGNMENT).lend() is None


@pytest.mark.parametrize("lazy", [torch.conj, torch._neg_view])
def test_what_is_not_in_the_bytes_is_computed_first(
    lazy: object, pool: StagingPool, memory: MemoryEngine
) -> None:
    assert callable(lazy)
    x = lazy(torch.randn(LARGE, dtype=torch.complex64))
    outgoing = HostOutgoing(x, pool, ALIGNMENT)
    assert not outgoing.shares_memory
    slot = write(outgoing, memory)
    y = read(HostIncoming(outgoing.layout, pool, ALIGNMENT), memory, slot)
    assert torch.equal(y, x)
    assert not y.is_conj()
    assert not y.is_neg()


def test_gaps_are_left_out(pool: StagingPool) -> None:
    outgoing = HostOutgoing(fill(8 * LARGE)[::8], pool, ALIGNMENT)
    assert outgoing.layout.span == LARGE
    assert not outgoing.shares_memory


def test_a_read_that_is_given_up_gives_its_buffer_back(pool: StagingPool) -> None:
    layout = HostOutgoing(fill(SMALL), pool, ALIGNMENT).layout
    incoming = HostIncoming(layout, pool, ALIGNMENT)
    assert pool.free_bytes == 0
    incoming.close()
    incoming.close()
    assert pool.free_bytes == 4096


def test_the_device_makes_both_ends_and_keeps_nothing(memory: MemoryEngine) -> None:
    """A copy in host memory is the engine's, also where that is host memory."""
    device, x = HostDevice(), fill(SMALL)
    outgoing = device.send(x, ALIGNMENT, memory)
    assert isinstance(outgoing, HostOutgoing)
    slot = write(outgoing, memory)
    incoming = device.receive(outgoing.layout, ALIGNMENT, memory)
    assert isinstance(incoming, HostIncoming)
    assert torch.equal(read(incoming, memory, slot), x)
    assert not device.keeps(memory)
    device.close()
