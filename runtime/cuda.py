"""CUDA tensors: device to pinned staging on a side stream, then the engine; and back.

This has not run on CUDA yet: the tests drive it with streams that are simulated on the CPU.
Order is kept by events, never by `record_stream`: the side stream waits for the stream that made
x; `release` makes the current stream wait for the copy of x, so that memory reused after it is
reused in order; a staging buffer returns to the pool only behind the copy that reads it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch

from fxoffload.runtime.buffers import (
    StagingBuffer,
    StagingPool,
    compact,
    copy_values,
    same_layout,
    span_tensor,
)
from fxoffload.runtime.ioengine import IOEngine
from fxoffload.runtime.transfer import Incoming, Layout, Outgoing, find_layout

WORKERS = 2


class Event(Protocol):
    """A point in the work of a stream."""

    def query(self) -> bool:
        """Whether the work before it is done."""
        ...

    def synchronize(self) -> None:
        """Wait in the host until it is."""
        ...


class Streams(Protocol):
    """The order of copies between one device and the host."""

    device: torch.device

    def copy_aside(self, target: torch.Tensor, source: torch.Tensor) -> Event:
        """Copy on the side stream, behind the current stream's work; the event ends the copy."""
        ...

    def copy_here(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy on the current stream without waiting in the host."""
        ...

    def mark(self) -> Event:
        """An event behind the current stream's work."""
        ...

    def join(self, event: Event) -> None:
        """Make the current stream wait for `event`."""
        ...


class CudaStreams:
    """The real streams of one CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._side = torch.cuda.Stream(device)

    def copy_aside(self, target: torch.Tensor, source: torch.Tensor) -> Event:
        """Copy on the side stream, behind the current stream's work; the event ends the copy."""
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side):
            target.copy_(source, non_blocking=True)
            return self._side.record_event()

    def copy_here(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy on the current stream without waiting in the host."""
        with torch.cuda.device(self.device):
            target.copy_(source, non_blocking=True)

    def mark(self) -> Event:
        """An event behind the current stream's work."""
        return torch.cuda.current_stream(self.device).record_event()

    def join(self, event: Event) -> None:
        """Make the current stream wait for `event`."""
        assert isinstance(event, torch.cuda.Event)
        torch.cuda.current_stream(self.device).wait_event(event)


class CudaDevice:
    """Tensors of one CUDA device."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self._pool = StagingPool(pinned=True, max_free_bytes=2**30)
        self._retired: deque[tuple[Event, StagingBuffer]] = deque()
        # A write first waits for its copy, which must not hold up the engine's own threads.
        self.executor = ThreadPoolExecutor(WORKERS, "fxoffload-cuda-write")

    def send(self, x: torch.Tensor, alignment: int) -> Outgoing:
        """Start to copy `x` to a staging buffer on the side stream."""
        return CudaOutgoing(x, self, alignment)

    def receive(
        self, layout: Layout, size: Sequence[int], stride: Sequence[int], alignment: int
    ) -> Incoming:
        """Allocate a device tensor and the staging buffer that the slot is read into."""
        return CudaIncoming(layout, size, stride, self, alignment)

    def take(self, nbytes: int) -> StagingBuffer:
        """A staging buffer; those whose last copy has passed are reused."""
        for _ in range(len(self._retired)):
            try:
                event, buffer = self._retired.popleft()
            except IndexError:  # Another thread took the last one.
                break
            if event.query():
                self._pool.give(buffer)
            else:
                self._retired.append((event, buffer))
        return self._pool.take(nbytes)

    def retire(self, buffer: StagingBuffer, event: Event | None) -> None:
        """Reuse `buffer` when `event` has passed."""
        if event is None:
            self._pool.give(buffer)
        else:
            self._retired.append((event, buffer))

    def close(self) -> None:
        """Finish the writes that were started and wait for every copy of a staging buffer."""
        self.executor.shutdown()
        while self._retired:
            event, _ = self._retired.popleft()
            event.synchronize()


class CudaOutgoing:
    """A device tensor's bytes: in a staging buffer once `_copied` has passed."""

    # The engine reads the staging buffer; the tensor's memory is ordered by events.
    shares_memory = False

    def __init__(self, x: torch.Tensor, device: CudaDevice, alignment: int) -> None:
        tensor = compact(x.resolve_conj().resolve_neg())
        self.layout = find_layout(tensor)
        self.slot_bytes = self.write_bytes = -(-self.layout.span // alignment) * alignment
        self._device = device
        self._buffer = device.take(self.slot_bytes)
        self._last: Event | None = None
        # Held until release or close: its memory must not be reused before the copy.
        self._tensor: torch.Tensor | None = tensor
        self._copied = device.streams.copy_aside(
            self._buffer.tensor[: self.layout.span], span_tensor(tensor)
        )

    def write(self, engine: IOEngine, offset: int) -> Future[int]:
        """Start to write to the slot at `offset`, once the copy has passed."""
        view, copied = self._buffer.view[: self.write_bytes], self._copied

        def run() -> int:
            copied.synchronize()
            return engine.write(view, offset).result()

        return self._device.executor.submit(run)

    def release(self) -> None:
        """Order what follows on the current stream behind the copy; no host wait."""
        if self._tensor is not None:
            self._device.streams.join(self._copied)
            self._tensor = None

    def keep_copy(self) -> None:
        """The staging buffer is the copy."""

    def lend(self, size: Sequence[int], stride: Sequence[int]) -> torch.Tensor | None:
        """Never: released memory has been reused by then."""
        return None

    def forward(self, y: torch.Tensor) -> None:
        """Copy the value from the staging buffer to `y` on the current stream."""
        streams = self._device.streams
        streams.join(self._copied)
        _copy_to_device(y, self._buffer, self.layout, streams)
        self._last = streams.mark()

    def close(self) -> None:
        """Retire the buffer behind its last copy; the write has ended."""
        if self._tensor is not None:
            self._copied.synchronize()
            self._tensor = None
        # A cancelled write never waited for the copy into the buffer.
        self._device.retire(self._buffer, self._last or self._copied)


class CudaIncoming:
    """A device tensor that is filled from a staging buffer."""

    def __init__(
        self,
        layout: Layout,
        size: Sequence[int],
        stride: Sequence[int],
        device: CudaDevice,
        alignment: int,
    ) -> None:
        self._layout = layout
        self._device = device
        self.y = torch.empty_strided(size, stride, dtype=layout.dtype, device=device.streams.device)
        nbytes = -(-layout.span // alignment) * alignment
        self._buffer = device.take(nbytes)
        self.view = self._buffer.view[:nbytes]

    def finish(self) -> None:
        """Copy to `y` on the current stream; the buffer is reused behind that."""
        streams = self._device.streams
        _copy_to_device(self.y, self._buffer, self._layout, streams)
        self._device.retire(self._buffer, streams.mark())

    def close(self) -> None:
        """Give the buffer back: nothing was copied from it."""
        self._device.retire(self._buffer, None)


def _copy_to_device(
    y: torch.Tensor, buffer: StagingBuffer, layout: Layout, streams: Streams
) -> None:
    target = y
    same = same_layout(y.shape, y.stride(), layout.size, layout.stride)
    if not same:
        target = torch.empty_strided(
            layout.size, layout.stride, dtype=layout.dtype, device=y.device
        )
    streams.copy_here(span_tensor(target), buffer.tensor[: layout.span])
    if not same:
        copy_values(y, target)
