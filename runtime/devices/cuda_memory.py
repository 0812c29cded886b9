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
from fxoffload.runtime.devices.cuda_deferred import HostWrite
from fxoffload.runtime.devices.staging import StagingArena
from fxoffload.runtime.devices.streams import CudaStreams

# To ask for an event takes a microsecond, and a host that is a step ahead has hundreds of holds. A
# value that is released long after it was copied stands behind some whose copies end later.
MOST_WAITING = 4


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
        # Of copies out, and of copies in; those of either pass nearly in the order of their holds.
        self._holds: tuple[deque[Hold], deque[Hold]] = deque(), deque()
        self.host_writes: deque[HostWrite] = deque()  # Whose copies end in this order.

    def take(self, nbytes: int) -> StagingBuffer:
        """A staging buffer of at least `nbytes`; buffers whose last copy has ended are reused."""
        self.let_go()
        return self.arena.take(nbytes)

    def hold(self, hold: Hold, *, incoming: bool = False) -> None:
        """Keep the memory of `hold` until its events have passed; safe in a finalizer.

        incoming: whether they are of copies to the device.
        """
        if hold.events:
            self._holds[incoming].append(hold)
        else:
            self._holds[incoming].appendleft(hold)

    def let_go(self, *, wait: bool = False) -> None:
        """Drop the holds whose events have passed, and end the writes to the host tier.

        A host that is a step ahead asks for a few events only. With `wait`, it waits for all.
        """
        if self.host_writes:
            self._end_writes(wait)
        for holds in self._holds:
            if holds:
                self._drop_passed(holds, wait)

    def _drop_passed(self, holds: deque[Hold], wait: bool) -> None:
        waiting: list[Hold] = []
        try:
            while len(waiting) < MOST_WAITING:
                try:
                    hold = holds.popleft()
                except IndexError:  # None is left, or another thread took the last one.
                    return
                waiting.append(hold)  # An error that an event raises must lose none.
                if wait:
                    for event in hold.events:
                        event.synchronize()
                elif not all(event.query() for event in hold.events):
                    continue
                waiting.pop()
                hold.tensors = ()  # An outgoing value has the hold, too, as long as it is stored.
                if hold.buffer is not None:
                    self.arena.give(hold.buffer)
        finally:
            holds.extendleft(reversed(waiting))

    def _end_writes(self, wait: bool) -> None:
        with suppress(IndexError):  # None is left, or another thread took the last one.
            while (write := self.host_writes.popleft()).note_copied(wait=wait):
                pass
            self.host_writes.appendleft(write)
