"""Move host tensors: write large ones from, and read them into, their own memory.

The engine moves the interior, which is aligned for direct I/O; the few bytes before it and
after it stay with the ticket, in Layout. The restored tensor gets an address with the same
remainder modulo the alignment, so its interior is read in place. Small tensors go through a staging
buffer.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from fxoffload.runtime.devices.buffers import (
    StagingBuffer,
    StagingPool,
    byte_view,
    compact,
    empty_at,
    find_span,
    materialise,
    span_tensor,
)
from fxoffload.runtime.devices.transfer import (
    Arrival,
    Incoming,
    Layout,
    Outgoing,
    Present,
    find_layout,
    restore_tensor,
)
from fxoffload.runtime.engines.ioengine import IOEngine, IOFuture

# For smaller tensors, a copy costs less than a wait for the write of the tensor's own memory.
DIRECT_BYTES = 64 * 2**10


class HostOutgoing:
    """A host tensor on its way out: its own memory, a private copy, or a staging buffer."""

    crosses_bus = False
    stays = False

    def __init__(self, x: torch.Tensor, pool: StagingPool, alignment: int) -> None:
        tensor = compact(materialise(x))
        self._pool = pool
        self._buffer: StagingBuffer | None = None
        self._tensor: torch.Tensor | None = None
        span = find_span(tensor)
        self.slot_bytes = -(-span // alignment) * alignment
        if span < DIRECT_BYTES:
            self.layout = find_layout(tensor)
            self.shares_memory = False
            self.write_bytes = self.slot_bytes
            self._buffer = pool.take(self.slot_bytes)
            self._buffer.tensor[:span].copy_(span_tensor(tensor))
            self._view = self._buffer.view[: self.slot_bytes]
            return
        address = tensor.data_ptr()
        self.shares_memory = address == x.data_ptr()
        self._tensor = tensor
        view, phase = byte_view(tensor), address % alignment
        start, end = _find_interior(phase, span, alignment)
        self._view = view[start:end]
        self.write_bytes = end - start
        head, tail = bytes(view[:start]), bytes(view[end:])
        self.layout = find_layout(tensor, staged=False, phase=phase, head=head, tail=tail)

    def write(self, engine: IOEngine, offset: int) -> IOFuture:
        """Start to write to the slot at `offset`."""
        return engine.write(self._view, offset)

    def release(self, block: bool) -> None:
        """Do nothing: the store waits for the write if the memory is shared."""

    def settle(self) -> bool:
        """Whether the write reads a staging buffer, not the tensor's own memory."""
        return not self.shares_memory

    def keep_copy(self) -> None:
        """Replace the tensor by a copy of its span."""
        if self._tensor is not None and self.shares_memory:
            self._tensor = restore_tensor(self.layout, span_tensor(self._tensor).clone())
            self._view = memoryview(b"")
            self.shares_memory = False

    def lend(self) -> torch.Tensor | None:
        """The tensor itself, if it starts at the start of its storage; else None."""
        tensor = self._tensor
        if tensor is None or tensor.storage_offset() != 0:
            return None
        return tensor.as_strided(self.layout.size, self.layout.stride)

    def forward(self) -> Arrival:
        """Copy the value to a new tensor."""
        y = _empty_like(self.layout)
        if self._tensor is not None:
            source = span_tensor(self._tensor)
        else:
            assert self._buffer is not None
            source = self._buffer.tensor[: self.layout.span]
        span_tensor(y).copy_(source)
        return Present(y)

    def close(self) -> None:
        """Give the memory back; the write has ended."""
        self._tensor = None
        self._view = memoryview(b"")
        if self._buffer is not None:
            self._pool.give(self._buffer)
            self._buffer = None


class HostIncoming:
    """A host tensor on its way back: read in place, or through a staging buffer."""

    def __init__(self, layout: Layout, pool: StagingPool, alignment: int) -> None:
        self._layout = layout
        self._pool = pool
        self._buffer: StagingBuffer | None = None
        self._memory: memoryview | None = None
        if layout.staged:
            nbytes = -(-layout.span // alignment) * alignment
            self.y = _empty_like(layout)
            self._buffer = pool.take(nbytes)
            self._view = self._buffer.view[:nbytes]
            self.read_bytes = nbytes
            return
        self.y, self._memory = empty_at(
            layout.size,
            layout.stride,
            layout.dtype,
            span=layout.span,
            phase=layout.phase,
            alignment=alignment,
        )
        start, end = _find_interior(layout.phase, layout.span, alignment)
        self._view = self._memory[start:end]
        self.read_bytes = end - start

    def read(self, engine: IOEngine, offset: int) -> IOFuture:
        """Start to read the slot at `offset`."""
        return engine.read(self._view, offset)

    def finish(self) -> None:
        """Copy the staged bytes, or the bytes before and after the interior, to `y`."""
        layout = self._layout
        if self._buffer is not None:
            span_tensor(self.y).copy_(self._buffer.tensor[: layout.span])
        else:
            assert self._memory is not None
            self._memory[: len(layout.head)] = layout.head
            self._memory[layout.span - len(layout.tail) :] = layout.tail
        self.close()

    def close(self) -> None:
        """Give the staging buffer back; `y` keeps its memory."""
        self._view = memoryview(b"")
        self._memory = None
        if self._buffer is not None:
            self._pool.give(self._buffer)
            self._buffer = None


class HostDevice:
    """Moves tensors in host memory."""

    def __init__(self) -> None:
        self._pool = StagingPool()

    def find_order(self) -> AbstractContextManager[object]:
        """Any context: what the caller did so far has ended."""
        return nullcontext()

    def send(self, x: torch.Tensor, alignment: int, engine: IOEngine) -> Outgoing:
        """Make the bytes of `x` ready to be written."""
        return HostOutgoing(x, self._pool, alignment)

    def receive(self, layout: Layout, alignment: int, engine: IOEngine) -> Incoming:
        """Allocate a tensor that the slot of `layout` can be read into."""
        return HostIncoming(layout, self._pool, alignment)

    def keeps(self, engine: IOEngine) -> bool:
        """Return False: the engine has its own copy of each value."""
        return False

    def close(self) -> None:
        """Do nothing: the staging buffers are freed together with the pool."""


def _empty_like(layout: Layout) -> torch.Tensor:
    """An uninitialised host tensor laid out as `layout` says."""
    return torch.empty_strided(layout.size, layout.stride, dtype=layout.dtype)


def _find_interior(phase: int, span: int, alignment: int) -> tuple[int, int]:
    """Start and end of the aligned part of `span` bytes at an address with remainder `phase`."""
    start = -phase % alignment
    return start, start + (span - start) // alignment * alignment
