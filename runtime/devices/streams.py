"""Copies on two side streams of one CUDA device, ordered by events.

The tests replace torch.cuda by simulated streams; test_gpu.py runs it on a device.

Everything here runs within `torch.cuda.device`, outside of `torch.cuda.stream`. A thread starts
with device 0 as the current one. Leaving a stream context there would create a CUDA context on
GPU 0, which takes hundreds of MiB of its memory, even if the job computes on another GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class CudaStreams:
    """Memory of one CUDA device and copies to and from it, one side stream for each direction.

    The current stream is that of the calling thread, which computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.cuda.device(device):
            self._out = torch.cuda.Stream(device)
            self._in = torch.cuda.Stream(device)

    def empty(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Allocate device memory; all earlier uses of it are queued on the current stream."""
        return torch.empty_strided(size, stride, dtype=dtype, device=self.device)

    def empty_host(self, nbytes: int, pinned: bool) -> torch.Tensor:
        """Host memory as a uint8 tensor."""
        with torch.cuda.device(self.device):
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned)

    def mark(self) -> torch.cuda.Event:
        """An event after the work that is queued on the current stream."""
        with torch.cuda.device(self.device):
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream())
            return event

    def join(self, event: torch.cuda.Event) -> None:
        """Make later work on the current stream wait for `event`."""
        with torch.cuda.device(self.device):
            torch.cuda.current_stream().wait_event(event)

    def copy_out(self, target: torch.Tensor, source: torch.Tensor) -> torch.cuda.Event:
        """Copy to the host after the work on the current stream; return the event of its end."""
        with torch.cuda.device(self.device):
            self._out.wait_stream(torch.cuda.current_stream())
            # A blocking event: worker threads wait for it, and must not spin on a core.
            return _copy(self._out, target, source, torch.cuda.Event(blocking=True))

    def copy_in(
        self, target: torch.Tensor, source: torch.Tensor, after: Sequence[torch.cuda.Event]
    ) -> torch.cuda.Event:
        """Copy to the device once the events `after` have passed; return the event of its end."""
        with torch.cuda.device(self.device):
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
