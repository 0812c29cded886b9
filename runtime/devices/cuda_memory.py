"""Memory that copies of a CUDA device use: held until they have ended.

Memory that a side stream uses is freed only when an event has passed. A staging buffer is reused
after its last copy. A y that no op waited for (of a backward that was abandoned) is held until the
copies into it have ended, as the allocator knows only the computing stream. Such holds are in a
queue that needs no lock, so a finalizer may end a value in any thread at any time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from fxoffload.runtime.devices.buffers import StagingBuffer
from fxoffload.runtime.devices.cuda_write import HostWrite
from fxoffload.runtime.devices.staging import StagingArena
from fxoffload.runtime.devices.streams import CudaStreams


@dataclass(slots=True, eq=False)
class Hold:
    """Memory that must not be reused before `events` have passed; none: it may be reused now."""

    events: Sequence[torch.cuda.Event]
    buffer: StagingBuffer | None = None
    tensors: tuple[torch.Tensor, ...] = ()


class CudaMemory:
    """Staging buffers and tensors of one CUDA device, and what holds them.

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

    def take(self, nbytes: int) -> StagingBuffer:
        """A staging buffer of at least `nbytes`; buffers whose last copy has ended are reused."""
        self.let_go()
        return self.arena.take(nbytes)

    def hold(self, hold: Hold) -> None:
        """Keep the memory of `hold` until its events have passed; safe in a finalizer."""
        self._holds.append(hold)

    def let_go(self, *, wait: bool = False) -> None:
        """Drop the holds whose events have passed, and end the writes to the host tier.

        With `wait`, the host waits for each.
        """
        self._end_writes(wait)
        for _ in range(len(self._holds)):
            try:
                hold = self._holds.popleft()
            except IndexError:  # Another thread took the last one.
                break
            if wait:
                for event in hold.events:
                    event.synchronize()
            elif not all(event.query() for event in hold.events):
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
