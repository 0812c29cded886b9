"""Device tensors on their way back: copied from a staging buffer, which a read may fill first."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from functools import partial

import torch

from fxoffload.runtime.devices.buffers import span_tensor
from fxoffload.runtime.devices.cuda_memory import CudaMemory, Hold
from fxoffload.runtime.devices.cuda_read import CudaRead
from fxoffload.runtime.devices.transfer import Layout
from fxoffload.runtime.engines.ioengine import IOEngine, IOFuture
from fxoffload.runtime.engines.pieces import find_pieces, join_pieces


class CudaArrival:
    """A device tensor `y` that copies on the incoming stream fill.

    blocking: whether a thread waits until the memory of `y` is free; see CudaStreams.mark.
    """

    def __init__(self, layout: Layout, memory: CudaMemory, *, blocking: bool = False) -> None:
        streams = memory.streams
        self._home = streams.find_current()  # First: a capture must not see the events of holds.
        memory.let_go()
        self._span = layout.span
        self._memory = memory
        try:
            self.y = streams.empty(layout.size, layout.stride, layout.dtype)
        except torch.OutOfMemoryError:
            memory.let_go(wait=True)  # The host may be a step ahead of the copies that hold memory.
            self.y = streams.empty(layout.size, layout.stride, layout.dtype)
        # Earlier uses of this memory may still be queued there.
        self._ready = streams.mark(self._home, blocking=blocking)
        self._holds: list[Hold] = []  # Of the started copies; any thread appends.

    def start(
        self, source: torch.Tensor, *after: torch.cuda.Event, piece: slice | None = None
    ) -> torch.cuda.Event:
        """Copy `piece` of the span, or all, from `source` once the events `after` have passed.

        source: the span as uint8, in host memory or on the device. Returns the event of the copy's
        end.
        """
        target = span_tensor(self.y)
        if piece is not None:
            target, source = target[piece], source[piece]
        copied = self._memory.streams.copy_in(target, source, (self._ready, *after))
        # The allocator does not know of the incoming stream: only the hold keeps the memory.
        hold = Hold((copied,), tensors=(self.y,))
        self._memory.hold(hold, incoming=True)
        self._holds.append(hold)
        return copied

    def finish(self) -> None:
        """Make the current stream wait for the copies; all have been started."""
        reader = self._memory.streams.join(self._find_events())
        if reader != self._home:
            self._memory.streams.note_reader(self.y, reader)
        for hold in self._holds:
            hold.tensors = ()  # Now the current stream orders every later use after the copies.

    def close(self) -> None:
        """Do nothing: the holds keep the memory until the copies have ended."""

    def _find_events(self) -> list[torch.cuda.Event]:
        return [event for hold in self._holds for event in hold.events]


class CudaIncoming(CudaArrival):
    """A device tensor on its way back from a drive, through a staging buffer.

    Each piece is copied to the device as soon as it has been read, in the thread that has read it,
    while the next ones are read.
    """

    def __init__(
        self, layout: Layout, memory: CudaMemory, alignment: int, piece_bytes: int
    ) -> None:
        super().__init__(layout, memory)
        nbytes = -(-layout.span // alignment) * alignment
        self.read_bytes = 0
        self._missing = {piece.start: piece for piece in find_pieces(nbytes, piece_bytes)}
        self._buffer = memory.arena.take(nbytes)  # What has passed was let go above.
        self._buffers = deque([self._buffer])  # pop is atomic: whoever gets it gives it back.
        self._error: Exception | None = None  # Of a copy.

    def read(self, engine: IOEngine, offset: int) -> IOFuture:
        """Start to read the pieces that are missing from the slot at `offset`.

        The last ones of an earlier call have ended. A piece that is here is not read again, as its
        copy may still use the buffer.
        """
        missing = list(self._missing.values())
        self.read_bytes = sum(piece.stop - piece.start for piece in missing)
        reads = [CudaRead(self._buffer.view[it], partial(self._arrive, it)) for it in missing]
        whole = join_pieces(reads)
        for piece, read in zip(missing, reads, strict=True):
            read.start(partial(engine.read, offset=offset + piece.start))
        return whole

    def finish(self) -> None:
        """Make the current stream wait for the copies of all pieces."""
        if self._error is not None:
            raise self._error
        super().finish()
        self.close()

    def close(self) -> None:
        """Give the buffer back once the started copies have ended; no read is in progress."""
        # After an error of a copy, which may be queued all the same, the buffer is never reused.
        if self._error is None:
            with suppress(IndexError):
                buffer = self._buffers.pop()
                self._memory.hold(Hold(self._find_events(), buffer), incoming=True)

    def _arrive(self, piece: slice) -> None:
        """Start the copy of `piece`, which has been read."""
        try:
            whole = piece.start == 0 and piece.stop >= self._span
            self.start(self._buffer.take_bytes(self._span), piece=None if whole else piece)
        except Exception as error:
            self._error = error
        del self._missing[piece.start]
