"""Move CUDA tensors: copy between device and pinned staging buffers on side streams.

The tests run it with streams that are simulated on the CPU; test_gpu.py runs it on a device.

Events keep the order, and not `record_stream`, behind which memory is free later than needed:

    offload    the outgoing stream waits for the computing stream, then copies x out; the engine
               writes the staging buffer
    release    with `block`, the computing stream waits for that copy, as it reuses the memory of x;
               without, x is held until the copy has ended
    prefetch   y is allocated on the computing stream, and the event `ready` is recorded there,
               after all earlier uses of the memory of y
    read ends  the thread that read issues the copy, on the incoming stream after `ready`
    wait       the computing stream waits for that copy; the host waits only until it is issued

A value of the host tier stays in its staging buffer: a second copy in host memory would only slow
down the bus. It counts as written once it has been copied out, and prefetch copies it back.

One worker thread waits for the copies out to drives, which end in the order of their starts, and
then starts each engine write: the engine has as many writes in flight as it can take.

A schedule may release or read a value in another call of the step, which the program may run on
another stream than the offload (the home of x) or the wait (the reader of y). So the home waits for
the copy of x, too, and only for a y of another stream `record_stream` tells the allocator of the
reader.

Memory that a side stream uses is freed only when an event has passed. A staging buffer is reused
after its last copy. A y that no op waited for (of a backward that was abandoned) is held until the
copy into it has ended, as the allocator knows only the computing stream. Such holds are in a queue
that needs no lock, so a finalizer may end a value in any thread at any time.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial

import torch

from fxoffload.runtime.devices.buffers import StagingBuffer, compact, span_tensor
from fxoffload.runtime.devices.cuda_write import CudaWrite, HostWrite
from fxoffload.runtime.devices.staging import StagingArena
from fxoffload.runtime.devices.streams import CudaStreams
from fxoffload.runtime.devices.transfer import Arrival, Incoming, Layout, Outgoing, find_layout
from fxoffload.runtime.engines.ioengine import IOEngine, IOFuture, find_outcome
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.engines.workers import Workers


@dataclass(slots=True, eq=False)
class Hold:
    """Memory that must not be reused before `event` has passed; None: it may be reused now."""

    event: torch.cuda.Event | None
    buffer: StagingBuffer | None = None
    tensors: tuple[torch.Tensor, ...] = ()


class CudaDevice:
    """Moves the tensors of one CUDA device.

    host_bytes, max_inflight_bytes: what host memory to pin, for the host tier, whose values stay in
    staging buffers, and for transfers to and from drives; see StagingArena.
    """

    def __init__(
        self, streams: CudaStreams, host_bytes: int, max_inflight_bytes: int | None
    ) -> None:
        self.streams = streams
        self.arena = StagingArena(streams.empty_host, host_bytes, max_inflight_bytes)
        self._holds: deque[Hold] = deque()
        self.host_writes: deque[HostWrite] = deque()  # Whose copies end in this order.
        # A write first waits for its copy; this thread does so, to keep the engine's threads free.
        self.workers = Workers(1, "fxoffload-cuda-write", enter=streams.enter_thread)

    def find_order(self) -> AbstractContextManager[object]:
        """A context in which the present current stream is the current one."""
        return self.streams.entering(self.streams.find_current())

    def send(self, x: torch.Tensor, alignment: int) -> Outgoing:
        """Start to copy `x` to a staging buffer on the outgoing stream."""
        return CudaOutgoing(x, self, alignment)

    def receive(self, layout: Layout, alignment: int) -> Incoming:
        """Allocate a device tensor and the staging buffer that the slot is read into."""
        return CudaIncoming(layout, self, alignment)

    def take(self, nbytes: int) -> StagingBuffer:
        """A staging buffer of at least `nbytes`; buffers whose last copy has ended are reused."""
        self.let_go()
        return self.arena.take(nbytes)

    def let_go(self, *, wait: bool = False) -> None:
        """Drop the holds whose event has passed, and end the writes to the host tier.

        With `wait`, the host waits for each.
        """
        self._end_writes(wait)
        for _ in range(len(self._holds)):
            try:
                hold = self._holds.popleft()
            except IndexError:  # Another thread took the last one.
                break
            if wait and hold.event is not None:
                hold.event.synchronize()
            elif hold.event is not None and not hold.event.query():
                self._holds.append(hold)
                continue
            hold.tensors = ()  # The outgoing value has the hold, too, for as long as it is stored.
            if hold.buffer is not None:
                self.arena.give(hold.buffer)

    def _end_writes(self, wait: bool) -> None:
        with suppress(IndexError):  # None is left, or another thread took the last one.
            while (write := self.host_writes.popleft()).end(wait=wait):
                pass
            self.host_writes.appendleft(write)

    def keeps(self, engine: IOEngine) -> bool:
        """Whether values for `engine` stay in their staging buffers: it is in host memory, too."""
        return isinstance(engine, MemoryEngine)

    def hold(self, hold: Hold) -> None:
        """Keep the memory of `hold` until its event has passed; safe in a finalizer."""
        self._holds.append(hold)

    def close(self) -> None:
        """Finish the writes, and wait for all copies."""
        self.workers.shutdown()
        self.let_go(wait=True)


class CudaOutgoing:
    """A device tensor on its way out: its bytes are in a staging buffer once `_copied` passed."""

    # The engine reads the staging buffer; events protect the tensor's memory.
    shares_memory = False
    crosses_bus = True
    stays = False

    def __init__(self, x: torch.Tensor, device: CudaDevice, alignment: int) -> None:
        self._home = device.streams.find_current()
        tensor = compact(x.resolve_conj().resolve_neg())
        self.layout = find_layout(tensor)
        self.slot_bytes = self.write_bytes = -(-self.layout.span // alignment) * alignment
        self._device = device
        self._buffer = device.take(self.slot_bytes)
        # Referenced until release or close: its memory must not be reused before the copy.
        self._tensor: torch.Tensor | None = tensor
        self._held: Hold | None = None  # What a release without block left to the copy.
        # If this raises, the copy may be queued already, so the buffer is never reused.
        self._copied = device.streams.copy_out(
            self._buffer.tensor[: self.layout.span], span_tensor(tensor)
        )
        self._last = self._copied  # The end of the last copy from or to the buffer.

    def write(self, engine: IOEngine, offset: int) -> IOFuture:
        """Start to write to the slot at `offset`, once the copy has ended.

        A slot of the host tier stays empty; it only counts the bytes that are used.
        """
        self.stays = self._device.keeps(engine)
        if self.stays:
            kept = HostWrite(self._copied, self.write_bytes)
            self._device.host_writes.append(kept)  # Another thread may take it at once.
            return kept
        view = self._buffer.view[: self.write_bytes]
        write = CudaWrite(self._copied, view, partial(engine.write, offset=offset))
        self._device.workers.start(write)
        return write

    def release(self, block: bool) -> None:
        """Let later work on the device wait for the copy (`block`), or hold x."""
        tensor, self._tensor = self._tensor, None
        if tensor is None:
            return
        if block:
            self._device.streams.join(self._copied, self._home)
        else:
            self._held = Hold(self._copied, tensors=(tensor,))
            self._device.hold(self._held)

    def settle(self) -> bool:
        """Let later work on the device wait for the copy; the host does not wait."""
        held, self._held = self._held, None
        if held is not None:
            self._device.streams.join(self._copied, self._home)
            held.tensors = ()
        return True

    def keep_copy(self) -> None:
        """Do nothing: the staging buffer is the copy."""

    def lend(self) -> torch.Tensor | None:
        """Return None: the tensor's memory has been reused by then."""
        return None

    def forward(self) -> Arrival:
        """Start to copy the value from the staging buffer to a new tensor."""
        arrival = CudaArrival(self.layout, self._device)
        self._last = arrival.start(self._buffer, self._copied)
        return arrival

    def close(self) -> None:
        """Hold the buffer until its last copy has ended; the write has ended."""
        # If the value was not released, or its write was cancelled, the copy may still run.
        tensors = () if self._tensor is None else (self._tensor,)
        self._tensor = None
        self._device.hold(Hold(self._last, self._buffer, tensors))


class CudaArrival:
    """A device tensor `y` that a copy on the incoming stream fills."""

    def __init__(self, layout: Layout, device: CudaDevice) -> None:
        streams = device.streams
        self._home = streams.find_current()  # First: a capture must not see the events of holds.
        device.let_go()
        self._layout = layout
        self._device = device
        try:
            self.y = streams.empty(layout.size, layout.stride, layout.dtype)
        except torch.OutOfMemoryError:
            device.let_go(wait=True)  # The host may be a step ahead of the copies that hold memory.
            self.y = streams.empty(layout.size, layout.stride, layout.dtype)
        # Earlier uses of this memory may still be queued there.
        self._ready = streams.mark(self._home)
        self._started: Future[Hold] = Future()

    def start(self, buffer: StagingBuffer, *after: torch.cuda.Event) -> torch.cuda.Event:
        """Copy from `buffer` once the events `after` have passed; called once.

        Returns the event of the copy's end.
        """
        streams = self._device.streams
        try:
            source = buffer.tensor[: self._layout.span]
            copied = streams.copy_in(span_tensor(self.y), source, (self._ready, *after))
        except BaseException as error:
            self._started.set_exception(error)
            raise
        # The allocator does not know of the incoming stream: only the hold keeps the memory.
        hold = Hold(copied, tensors=(self.y,))
        self._device.hold(hold)
        self._started.set_result(hold)
        return copied

    def finish(self) -> None:
        """Make the current stream wait for the copy."""
        hold = self._started.result()
        assert hold.event is not None
        reader = self._device.streams.join(hold.event)
        if reader != self._home:
            self._device.streams.note_reader(self.y, reader)
        hold.tensors = ()  # Now the current stream orders every later use after the copy.

    def close(self) -> None:
        """Do nothing: the hold keeps the memory until the copy has ended."""


class CudaIncoming(CudaArrival):
    """A device tensor on its way back: its staging buffer is read, then copied to the device."""

    def __init__(self, layout: Layout, device: CudaDevice, alignment: int) -> None:
        super().__init__(layout, device)
        nbytes = -(-layout.span // alignment) * alignment
        buffer = device.take(nbytes)
        self.view = buffer.view[:nbytes]
        # pop is atomic: the end of the read, the wait and the end of the value may run in three
        # threads, and exactly one of them gets the buffer.
        self._buffers = deque([buffer])

    def arrive(self, read: IOFuture) -> None:
        """Start the copy to the device, in the thread that has read."""
        if find_outcome(read) == len(self.view):
            self._copy_once()

    def finish(self) -> None:
        """Make the current stream wait for the copy."""
        self._copy_once()
        super().finish()

    def close(self) -> None:
        """Give the buffer back, unless a copy uses it, whose hold gives it back."""
        if (buffer := self._take_buffer()) is not None:
            self._device.hold(Hold(None, buffer))

    def _copy_once(self) -> None:
        if (buffer := self._take_buffer()) is not None:
            # If `start` raises, the copy may be queued already, so the buffer is never reused.
            self._device.hold(Hold(self.start(buffer), buffer))

    def _take_buffer(self) -> StagingBuffer | None:
        try:
            return self._buffers.pop()
        except IndexError:
            return None
