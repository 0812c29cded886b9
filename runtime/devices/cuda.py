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

Values for drives that are larger than a piece are copied out and written, and read and copied back,
piece by piece, with an event behind each: one piece is written while the next one is copied. An
engine that moves device memory needs neither (cuda_direct).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial

import torch

from fxoffload.runtime.devices.buffers import compact, find_span, materialise, span_tensor
from fxoffload.runtime.devices.cuda_arrival import CudaArrival, CudaIncoming
from fxoffload.runtime.devices.cuda_deferred import DeferredTransfer, HostWrite
from fxoffload.runtime.devices.cuda_direct import DirectIncoming, DirectOutgoing, moves_directly
from fxoffload.runtime.devices.cuda_memory import CudaMemory, Hold
from fxoffload.runtime.devices.streams import CudaStreams
from fxoffload.runtime.devices.transfer import Arrival, Incoming, Layout, Outgoing, find_layout
from fxoffload.runtime.engines.ioengine import IOEngine, IOFuture
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.engines.pieces import PIECE_BYTES, find_pieces, join_pieces
from fxoffload.runtime.engines.workers import Workers


class CudaDevice(CudaMemory):
    """Moves the tensors of one CUDA device.

    piece_bytes: of which values for drives are made; the same for all devices of a store.
    """

    def __init__(
        self,
        streams: CudaStreams,
        host_bytes: int,
        max_inflight_bytes: int | None,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        super().__init__(streams, host_bytes, max_inflight_bytes)
        self.piece_bytes = piece_bytes
        # A write first waits for its copy; this thread does so, to keep the engine's threads free.
        self.workers = Workers(1, "fxoffload-cuda-write", enter=streams.enter_thread)

    def find_order(self) -> AbstractContextManager[object]:
        """A context in which the present current stream is the current one."""
        return self.streams.entering(self.streams.find_current())

    def send(self, x: torch.Tensor, alignment: int, engine: IOEngine) -> Outgoing:
        """Start to copy `x` to a staging buffer on the outgoing stream, if the engine needs it."""
        home = self.streams.find_current()
        tensor = compact(materialise(x))
        if moves_directly(find_span(tensor), alignment, engine):
            shared = tensor.data_ptr() == x.data_ptr()
            return DirectOutgoing(tensor, self, self.workers, shared=shared, home=home)
        return CudaOutgoing(tensor, self, alignment, engine, home)

    def receive(self, layout: Layout, alignment: int, engine: IOEngine) -> Incoming:
        """Allocate a device tensor, and the staging buffer that the slot is read into if needed."""
        if moves_directly(layout.span, alignment, engine):
            return DirectIncoming(layout, self, self.workers)
        return CudaIncoming(layout, self, alignment, self.piece_bytes)

    def keeps(self, engine: IOEngine) -> bool:
        """Whether values for `engine` stay in their staging buffers: it is in host memory, too."""
        return isinstance(engine, MemoryEngine)

    def close(self) -> None:
        """Finish the writes, and wait for all copies."""
        self.workers.shutdown()
        self.let_go(wait=True)


class CudaOutgoing:
    """A device tensor on its way out: its bytes are in a staging buffer once `_copied` passed.

    tensor: without gaps. engine: for which it is copied, in pieces if this is a drive. home: the
    stream on which the tensor was made.
    """

    # The engine reads the staging buffer; events protect the tensor's memory.
    shares_memory = False
    crosses_bus = True
    stays = False

    def __init__(
        self,
        tensor: torch.Tensor,
        device: CudaDevice,
        alignment: int,
        engine: IOEngine,
        home: torch.cuda.Stream,
    ) -> None:
        self._home = home
        self.layout = find_layout(tensor)
        self.slot_bytes = self.write_bytes = -(-self.layout.span // alignment) * alignment
        self._device = device
        self._buffer = device.take(self.slot_bytes)
        # Referenced until release or close: its memory must not be reused before the copy.
        self._tensor: torch.Tensor | None = tensor
        self._held: Hold | None = None  # What a release without block left to the copy.
        span = self.layout.span
        pieces = find_pieces(span, max(span, 1) if device.keeps(engine) else device.piece_bytes)
        # If this raises, a copy may be queued already, so the buffer is never reused.
        self._pieces_copied = device.streams.copy_out(
            self._buffer.take_bytes(span), span_tensor(tensor), self._home, pieces
        )
        self._copied = self._pieces_copied[-1]
        self._last = self._copied  # The end of the last copy from or to the buffer.

    def write(self, engine: IOEngine, offset: int) -> IOFuture:
        """Start to write to the slot at `offset`, each piece once its copy has ended.

        A slot of the host tier stays empty; it only counts the bytes that are used.
        """
        self.stays = self._device.keeps(engine)
        if self.stays:
            kept = HostWrite(self._copied, self.write_bytes)
            self._device.host_writes.append(kept)  # Another thread may take it at once.
            return kept
        pieces = find_pieces(self.write_bytes, self._device.piece_bytes)
        events = self._pieces_copied
        if len(events) < len(pieces):  # It was meant for the host tier, which is full.
            events = [self._copied] * len(pieces)
        writes = [
            DeferredTransfer(event, partial(engine.write, self._buffer.view[it], offset + it.start))
            for event, it in zip(events, pieces, strict=True)
        ]
        whole = join_pieces(writes)
        for write in writes:
            self._device.workers.start(write)
        return whole

    def release(self, block: bool) -> None:
        """Let later work on the device wait for the copy (`block`), or hold x."""
        tensor, self._tensor = self._tensor, None
        if tensor is None:
            return
        if block:
            self._device.streams.join((self._copied,), self._home)
        else:
            self._held = Hold((self._copied,), tensors=(tensor,))
            self._device.hold(self._held)

    def settle(self) -> bool:
        """Let later work on the device wait for the copy; the host does not wait."""
        held, self._held = self._held, None
        if held is not None:
            self._device.streams.join((self._copied,), self._home)
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
        self._last = arrival.start(self._buffer.take_bytes(self.layout.span), self._copied)
        return arrival

    def close(self) -> None:
        """Hold the buffer until its last copy has ended; the write has ended."""
        # If the value was not released, or its write was cancelled, the copy may still run.
        tensors = () if self._tensor is None else (self._tensor,)
        self._tensor = None
        hold = Hold((self._last,), self._buffer, tensors)
        self._device.hold(hold, incoming=self._last is not self._copied)
