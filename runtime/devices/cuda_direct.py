"""Device tensors that an engine moves without host memory: by GPUDirect Storage.

    offload    the event `produced` is recorded on the computing stream; a worker waits for it, then
               the engine writes the memory of x
    release    with `block`, the host waits for the write, as the program reuses the memory of x;
               without, x is held until the write has ended
    prefetch   y is allocated, and `ready` is recorded on the computing stream after all earlier
               uses of its memory; a worker waits for it, then the engine reads into y
    wait       the host waits for the read; later work on any stream sees its bytes

So the bytes cross the bus once, at the speed of the drive, and no pinned memory is needed. The
memory of x is free later than behind a copy to the host: when the drive has it.

The engine moves whole units of its alignment, as the device's memory has other owners behind them.
A value of other sizes goes through a staging buffer, and so does each value of an engine that needs
host memory. Either way the same bytes are in the slot.
"""

from __future__ import annotations

from functools import partial

import torch

from fxoffload.runtime.devices.buffers import span_tensor
from fxoffload.runtime.devices.cuda_arrival import CudaArrival
from fxoffload.runtime.devices.cuda_deferred import DeferredTransfer
from fxoffload.runtime.devices.cuda_memory import CudaMemory
from fxoffload.runtime.devices.transfer import Arrival, Layout, find_layout, restore_tensor
from fxoffload.runtime.engines.ioengine import IOEngine, IOFuture
from fxoffload.runtime.engines.workers import Workers


def moves_directly(span: int, alignment: int, engine: IOEngine) -> bool:
    """Whether `engine` moves a value of `span` bytes without host memory."""
    return engine.move_device is not None and span > 0 and span % alignment == 0


class DirectOutgoing:
    """A device tensor on its way out, which the engine reads where it is.

    tensor: without gaps. shared: whether its memory is that of the program's tensor. home: the
    stream on which it was made. workers: of which one waits for that stream.
    """

    crosses_bus = False
    stays = False

    def __init__(
        self,
        tensor: torch.Tensor,
        memory: CudaMemory,
        workers: Workers,
        *,
        shared: bool,
        home: torch.cuda.Stream,
    ) -> None:
        self.layout = find_layout(tensor)
        self.slot_bytes = self.write_bytes = self.layout.span
        self.shares_memory = shared
        self._memory, self._workers, self._home = memory, workers, home
        self._tensor: torch.Tensor | None = tensor
        self._produced = memory.streams.mark(home, blocking=True)

    def write(self, engine: IOEngine, offset: int) -> IOFuture:
        """Start to write to the slot at `offset` once the tensor has been computed."""
        assert self._tensor is not None
        return _defer(
            self._workers, self._produced, engine, span_tensor(self._tensor), offset, write=True
        )

    def release(self, block: bool) -> None:
        """Do nothing: the store waits for the write if the memory is shared."""

    def settle(self) -> bool:
        """Whether the write reads a private copy, not the program's tensor."""
        return not self.shares_memory

    def keep_copy(self) -> None:
        """Replace the tensor by a copy of its span, made on the current stream."""
        if self._tensor is not None and self.shares_memory:
            reader = self._join_current(self._tensor)
            copy = span_tensor(self._tensor).clone()
            self._tensor = restore_tensor(self.layout, copy)
            self._home, self._produced = reader, self._memory.streams.mark(reader, blocking=True)
            self.shares_memory = False

    def lend(self) -> torch.Tensor | None:
        """The tensor itself, if it starts at the start of its storage; else None."""
        tensor = self._tensor
        if tensor is None or tensor.storage_offset() != 0:
            return None
        self._join_current(tensor)
        return tensor.as_strided(self.layout.size, self.layout.stride)

    def forward(self) -> Arrival:
        """Start to copy the value to a new tensor, on the device."""
        assert self._tensor is not None
        arrival = CudaArrival(self.layout, self._memory)
        copied = arrival.start(span_tensor(self._tensor), self._produced)
        # The program may overwrite the tensor, or free it, behind this.
        self._memory.streams.join((copied,), self._home)
        return arrival

    def close(self) -> None:
        """Drop the tensor; the write has ended."""
        self._tensor = None

    def _join_current(self, tensor: torch.Tensor) -> torch.cuda.Stream:
        """Let the current stream, which will use `tensor`, wait for it; return that stream."""
        reader = self._memory.streams.join((self._produced,))
        if reader != self._home:
            self._memory.streams.note_reader(tensor, reader)
        return reader


class DirectIncoming(CudaArrival):
    """A device tensor on its way back, which the engine reads into."""

    def __init__(self, layout: Layout, memory: CudaMemory, workers: Workers) -> None:
        super().__init__(layout, memory, blocking=True)
        self.read_bytes = layout.span
        self._workers = workers

    def read(self, engine: IOEngine, offset: int) -> IOFuture:
        """Start to read the slot at `offset` once the memory is free."""
        target = span_tensor(self.y)
        return _defer(self._workers, self._ready, engine, target, offset, write=False)


def _defer(
    workers: Workers,
    after: torch.cuda.Event,
    engine: IOEngine,
    tensor: torch.Tensor,
    offset: int,
    *,
    write: bool,
) -> IOFuture:
    """Let `engine` move `tensor` once `after` has passed."""
    move = engine.move_device
    assert move is not None
    transfer = DeferredTransfer(after, partial(move, tensor, offset, write=write))
    workers.start(transfer)
    return transfer
