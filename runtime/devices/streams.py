"""The streams of one CUDA device as the store needs them: two side streams, ordered by events.

The tests put simulated streams in the place of torch.cuda; test_gpu.py runs it on a device.

`torch.cuda.device` stands around everything here, outside of `torch.cuda.stream`: threads start
with device 0 as current, and a stream context that is left there would make a context on GPU 0,
hundreds of MiB of its memory, for a job that computes on another one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class CudaStreams:
    """Memory of one CUDA device and copies to and from it, one side stream for each direction.

    "Here" is the current stream of the calling thread: the one that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.cuda.device(device):
            self._out = torch.cuda.Stream(device)
            self._in = torch.cuda.Stream(device)

    def empty(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Device memory that belongs here: whatever was computed in it before is queued here."""
        return torch.empty_strided(size, stride, dtype=dtype, device=self.device)

    def empty_host(self, nbytes: int, pinned: bool) -> torch.Tensor:
        """Host memory as bytes."""
        with torch.cuda.device(self.device):
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned)

    def mark(self) -> torch.cuda.Event:
        """An event behind the work that is queued here."""
        with torch.cuda.device(self.device):
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream())
            return event

    def join(self, event: torch.cuda.Event) -> None:
        """Let nothing that is queued here from now on start before `event`."""
        with torch.cuda.device(self.device):
            torch.cuda.current_stream().wait_event(event)

    def copy_out(self, target: torch.Tensor, source: torch.Tensor) -> torch.cuda.Event:
        """Copy to the host behind the work that is queued here; the event is its end."""
        with torch.cuda.device(self.device):
            self._out.wait_stream(torch.cuda.current_stream())
            # Blocking: threads of ours wait for it, and must not spin on a core meanwhile.
            return _copy(self._out, target, source, torch.cuda.Event(blocking=True))

    def copy_in(
        self, target: torch.Tensor, source: torch.Tensor, after: Sequence[torch.cuda.Event]
    ) -> torch.cuda.Event:
        """Copy to the device behind the events `after`; the event is its end."""
        with torch.cuda.device(self.device):
            for event in after:
                self._in.wait_event(event)
            return _copy(self._in, target, source, torch.cuda.Event())

    def enter_thread(self) -> None:
        """Make this device the current one of a thread of ours."""
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
