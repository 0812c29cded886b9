"""CUDA tensors: device to pinned staging on a side stream, then the engine; and back.

The tests drive it with streams that are simulated on the CPU; test_gpu.py runs it on a device.

Order is kept by events, never by `record_stream`:

    offload    the outgoing stream waits for the stream that computes, then copies x out
    release    with `block` the computing stream waits for that copy, as it reuses the memory of x;
               without, x is held until the copy has ended
    prefetch   y is allocated on the computing stream, and `ready` marked there: whatever used
               the memory of y before is in front of it
    read ends  the thread that read issues the copy, on the incoming stream behind `ready`
    wait       the computing stream waits for that copy; the host only for its being issued

What goes to host memory stays in its staging buffer, which a second copy on the host would only
take the bus's speed from: written means that it has been copied out, and prefetch copies it back.

One thread of ours waits for the copies out, which end in the order of their start, and hands each
value to the engine: as much is written at a time as the engine can.

Nothing but a passed event frees memory that a side stream uses: a staging buffer comes back
behind its last copy, and a y that nobody waited for (a backward that was given up) is held until
the copy into it has ended, as the allocator knows the computing stream only. Such holds are noted
in a queue that needs no lock, so that finalizers may end a value in any thread at any time.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import torch

from fxoffload.runtime.devices.buffers import StagingBuffer, compact, span_tensor
from fxoffload.runtime.devices.cuda_write import CudaWrite
from fxoffload.runtime.devices.staging import StagingArena
from fxoffload.runtime.devices.streams import CudaStreams
from fxoffload.runtime.devices.transfer import Arrival, Incoming, Layout, Outgoing, find_layout
from fxoffload.runtime.engines.ioengine import (
    IOEngine,
    IOFuture,
    find_outcome,
)
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.engines.workers import Workers

STAGING_BYTES = 2 * 2**30


@dataclass(slots=True, eq=False)
class Hold:
    """Memory that must not be used for anything else before `event`; None: now."""

    event: torch.cuda.Event | None
    buffer: StagingBuffer | None = None
    tensors: tuple[torch.Tensor, ...] = ()


class CudaDevice:
    """Tensors of one CUDA device.

    At most `host_bytes` of host memory, which values may stay in, and STAGING_BYTES are pinned.
    """

    def __init__(self, streams: CudaStreams, host_bytes: int = 0) -> None:
        self.streams = streams
        self.arena = StagingArena(streams.empty_host, host_bytes + STAGING_BYTES)
        self._holds: deque[Hold] = deque()
        # A write first waits for its copy, which must not hold up the engine's own threads.
        self.workers = Workers(1, "fxoffload-cuda-write", enter=streams.enter_thread)

    def send(self, x: torch.Tensor, alignment: int) -> Outgoing:
        """Start to copy `x` to a staging buffer on the outgoing stream."""
        return CudaOutgoing(x, self, alignment)

    def receive(self, layout: Layout, alignment: int) -> Incoming:
        """Allocate a device tensor and the staging buffer that the slot is read into."""
        return CudaIncoming(layout, self, alignment)

    def take(self, nbytes: int) -> StagingBuffer:
        """A staging buffer; those whose last copy has passed are reused."""
        self.let_go()
        return self.arena.take(nbytes)

    def let_go(self) -> None:
        """Drop the holds whose event has passed."""
        for _ in range(len(self._holds)):
            try:
                hold = self._holds.popleft()
            except IndexError:  # Another thread took the last one.
                break
            if hold.event is not None and not hold.event.query():
                self._holds.append(hold)
            elif hold.buffer is not None:
                self.arena.give(hold.buffer)

    def keeps(self, engine: IOEngine) -> bool:
        """Whether `engine` is host memory, as the staging buffers are."""
        return isinstance(engine, MemoryEngine)

    def hold(self, hold: Hold) -> None:
        """Keep what `hold` names until its event; safe in a finalizer."""
        self._holds.append(hold)

    def close(self) -> None:
        """Finish the writes that were started and wait for every copy that was."""
        self.workers.shutdown()
        while self._holds:
            hold = self._holds.popleft()
            if hold.event is not None:
                hold.event.synchronize()


class CudaOutgoing:
    """A device tensor's bytes: in a staging buffer once `_copied` has passed."""

    # The engine reads the staging buffer; the tensor's memory is ordered by events.
    shares_memory = False
    crosses_bus = True
    stays = False

    def __init__(self, x: torch.Tensor, device: CudaDevice, alignment: int) -> None:
        tensor = compact(x.resolve_conj().resolve_neg())
        self.layout = find_layout(tensor)
        self.slot_bytes = self.write_bytes = -(-self.layout.span // alignment) * alignment
        self._device = device
        self._buffer = device.take(self.slot_bytes)
        # Held until release or close: its memory must not be reused before the copy.
        self._tensor: torch.Tensor | None = tensor
        # On an exception the copy may be queued already, so the buffer is not reused.
        self._copied = device.streams.copy_out(
            self._buffer.tensor[: self.layout.span], span_tensor(tensor)
        )
        self._last = self._copied  # The last event that the buffer is needed for.

    def write(self, engine: IOEngine, offset: int) -> IOFuture:
        """Start to write to the slot at `offset`, once the copy has passed.

        A slot of host memory stays empty: it says how much of that memory is taken.
        """
        self.stays = self._device.keeps(engine)
        view = self._buffer.view[: self.write_bytes]
        write = CudaWrite(
            self._copied, view, None if self.stays else partial(engine.write, offset=offset)
        )
        self._device.workers.start(write)
        return write

    def release(self, block: bool) -> None:
        """Order what follows on the current stream behind the copy, or hold x; no host wait."""
        tensor, self._tensor = self._tensor, None
        if tensor is None:
            return
        if block:
            self._device.streams.join(self._copied)
        else:
            self._device.hold(Hold(self._copied, tensors=(tensor,)))

    def keep_copy(self) -> None:
        """The staging buffer is the copy."""

    def lend(self) -> torch.Tensor | None:
        """Never: released memory has been reused by then."""
        return None

    def forward(self) -> Arrival:
        """Start to copy the value from the staging buffer to a new tensor."""
        arrival = CudaArrival(self.layout, self._device)
        self._last = arrival.start(self._buffer, self._copied)
        return arrival

    def close(self) -> None:
        """Hold the buffer until its last copy; the write has ended."""
        # A value that dies unreleased has no stream to join; a cancelled write waited for nothing.
        tensors = () if self._tensor is None else (self._tensor,)
        self._tensor = None
        self._device.hold(Hold(self._last, self._buffer, tensors))


class CudaArrival:
    """A device tensor `y` that a copy on the incoming stream fills."""

    def __init__(self, layout: Layout, device: CudaDevice) -> None:
        streams = device.streams
        device.let_go()
        self._layout = layout
        self._device = device
        self.y = streams.empty(layout.size, layout.stride, layout.dtype)
        # What used this memory before may still be queued on the current stream.
        self._ready = streams.mark()
        self._started: Future[Hold] = Future()

    def start(self, buffer: StagingBuffer, *after: torch.cuda.Event) -> torch.cuda.Event:
        """Copy from `buffer` behind `after`; called once. The event is the end of the copy."""
        streams = self._device.streams
        try:
            source = buffer.tensor[: self._layout.span]
            copied = streams.copy_in(span_tensor(self.y), source, (self._ready, *after))
        except BaseException as error:
            self._started.set_exception(error)
            raise
        # The allocator does not know of the incoming stream: only this keeps the memory.
        hold = Hold(copied, tensors=(self.y,))
        self._device.hold(hold)
        self._started.set_result(hold)
        return copied

    def finish(self) -> None:
        """Make the current stream wait for the copy."""
        hold = self._started.result()
        assert hold.event is not None
        self._device.streams.join(hold.event)
        hold.tensors = ()  # From here on the order of the current stream keeps them.

    def close(self) -> None:
        """Nothing: the hold keeps the memory until the copy has ended."""


class CudaIncoming(CudaArrival):
    """A device tensor that is filled from a staging buffer as soon as that has been read into."""

    def __init__(self, layout: Layout, device: CudaDevice, alignment: int) -> None:
        super().__init__(layout, device)
        nbytes = -(-layout.span // alignment) * alignment
        buffer = device.take(nbytes)
        self.view = buffer.view[:nbytes]
        # pop is atomic: of the end of the read, the end of the wait and the end of the value, which
        # may run in three threads, exactly one gets the buffer.
        self._buffers = deque([buffer])

    def arrive(self, read: IOFuture) -> None:
        """Start the copy in the background, in the thread that has read."""
        if find_outcome(read) == len(self.view):
            self._copy_once()

    def finish(self) -> None:
        """Make the current stream wait for the copy."""
        self._copy_once()
        super().finish()

    def close(self) -> None:
        """Give the buffer back, unless a copy reads it: then that gives it back."""
        if (buffer := self._take_buffer()) is not None:
            self._device.hold(Hold(None, buffer))

    def _copy_once(self) -> None:
        buffer = self._take_buffer()
        if buffer is not None:
            # On an exception the copy may be queued already, so the buffer is not reused.
            self._device.hold(Hold(self.start(buffer), buffer))

    def _take_buffer(self) -> StagingBuffer | None:
        try:
            return self._buffers.pop()
        except IndexError:
            return None
