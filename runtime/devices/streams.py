"""Copies on two side streams of one CUDA device, ordered by events.

The tests replace torch.cuda by simulated streams; test_gpu.py runs it on a device.

Stream contexts are entered within `torch.cuda.device` only. A thread starts with device 0 as the
current one. Leaving a stream context there would create a CUDA context on GPU 0, which takes
hundreds of MiB of its memory, even if the job computes on another GPU.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch

from fxoffload.errors import StoreError


class CudaStreams:
    """Memory of one CUDA device and copies to and from it, one side stream for each direction.

    The current stream is that of the calling thread, which computes. The home of a tensor is the
    stream that was current when its memory was allocated: the allocator gives the memory to later
    work of that stream without waiting for any other one.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._index = device.index  # torch.cuda.device takes a number in half the time.
        with torch.cuda.device(self._index):
            self._out = torch.cuda.Stream(device)
            self._in = torch.cuda.Stream(device)

    def empty(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Allocate device memory; all earlier uses of it are queued on the current stream."""
        return torch.empty_strided(size, stride, dtype=dtype, device=self.device)

    def empty_host(self, nbytes: int, pinned: bool) -> torch.Tensor:
        """Host memory as a uint8 tensor."""
        with torch.cuda.device(self._index):
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned)

    def find_current(self) -> torch.cuda.Stream:
        """The current stream of this device; raises StoreError while it captures a CUDA graph."""
        with torch.cuda.device(self._index):
            if torch.cuda.is_current_stream_capturing():
                raise StoreError(
                    "a CUDA graph is being captured (torch.cuda.graph, make_graphed_callables), "
                    "and a replay of it would move no values: run fxoffload without such a graph, "
                    "or let Inductor make graphs of the code between its ops by "
                    'mode="reduce-overhead"'
                )
            return torch.cuda.current_stream()

    def mark(self, stream: torch.cuda.Stream, *, blocking: bool = False) -> torch.cuda.Event:
        """An event after the work that is queued on `stream`, which names the device.

        blocking: whether a thread that waits for it sleeps, and does not spin on a core.
        """
        event = torch.cuda.Event(blocking=blocking)
        event.record(stream)
        return event

    @contextmanager
    def entering(self, stream: torch.cuda.Stream) -> Generator[None]:
        """Make `stream` the current one of the calling thread, for a while."""
        with torch.cuda.device(self._index), torch.cuda.stream(stream):
            yield

    def join(
        self, events: Sequence[torch.cuda.Event], *others: torch.cuda.Stream
    ) -> torch.cuda.Stream:
        """Make later work on the current stream and on `others` wait for `events`.

        Returns the current stream. Raises as find_current.
        """
        current = self.find_current()
        for event in events:
            current.wait_event(event)
            for stream in others:
                if stream != current:
                    stream.wait_event(event)
        return current

    def note_reader(self, tensor: torch.Tensor, reader: torch.cuda.Stream) -> None:
        """Free the memory of `tensor` only behind what `reader` will have to do then."""
        torch.Tensor.record_stream(tensor, reader)

    def copy_out(
        self,
        target: torch.Tensor,
        source: torch.Tensor,
        after: torch.cuda.Stream,
        pieces: Sequence[slice] = (slice(None),),
    ) -> list[torch.cuda.Event]:
        """Copy to the host after the work on the stream `after`, one of `pieces` after the other.

        Returns the event of the end of each.
        """
        parts = [(target, source)]
        if len(pieces) > 1:
            parts = [(target[piece], source[piece]) for piece in pieces]
        with torch.cuda.device(self._index):
            self._out.wait_stream(after)
            # Blocking events: worker threads wait for them, and must not spin on a core.
            return [_copy(self._out, *part, torch.cuda.Event(blocking=True)) for part in parts]

    def copy_in(
        self, target: torch.Tensor, source: torch.Tensor, after: Sequence[torch.cuda.Event]
    ) -> torch.cuda.Event:
        """Copy to the device once the events `after` have passed; return the event of its end."""
        with torch.cuda.device(self._index):
            for event in after:
                self._in.wait_event(event)
            return _copy(self._in, target, source, torch.cuda.Event())

    def enter_thread(self) -> None:
        """Make this device the current one of the calling worker thread."""
        torch.cuda.set_device(self.device)


def _copy(
    stream: torch.cuda.Stream,
    target: torch.Tensor,
    source: torch.Tensor,
    event: torch.cuda.Event,
) -> torch.cuda.Event:
    with torch.cuda.stream(stream):
        target.copy_(source, non_blocking=True)
        event.record(stream)
    return event
