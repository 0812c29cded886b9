"""The base of the engines for disks: slots striped over several spill files.

Each value is written as a whole to one file: the one whose transfers in flight take the least time
at its speed; if several are equal, the one that is the least full for its speed. A full file is
skipped, and so is one whose writes keep failing.
"""

from __future__ import annotations

import abc
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from fxoffload.errors import StoreFull
from fxoffload.runtime.engines.ioengine import DeviceMover, IOFuture, find_outcome
from fxoffload.runtime.engines.slots import SlotAllocator
from fxoffload.runtime.engines.spill_file import SpillFile

# A file whose last FAILURES writes failed gets no slot for AVOIDED_SECONDS, unless all others are
# full. After that time it is tried again.
FAILURES = 3
AVOIDED_SECONDS = 60.0
_LEAST_ALIGNMENT = 512
_RESERVE_UNIT = 4096
# The bits of an offset above these are the index of the file, so a file can have 256 TiB.
_POSITION_BITS = 48
_POSITION_MASK = (1 << _POSITION_BITS) - 1


@dataclass(slots=True, eq=False)
class Stripe:
    """One spill file with its slots and its load."""

    index: int
    file: SpillFile
    slots: SlotAllocator
    bytes_per_second: float
    inflight_bytes: int = 0
    failures: int = 0  # Failed writes since the last successful one.
    avoided_until: float = 0.0


class _Event(NamedTuple):
    """A transfer has started (`nbytes` > 0) or ended (`nbytes` < 0).

    failed: whether a write failed; None for reads, cancelled writes and starts.
    """

    stripe: Stripe
    nbytes: int
    failed: bool | None


class StripedEngine(abc.ABC):
    """Allocates slots from several files; the subclass moves the bytes.

    bytes_per_second: the speed of each file, in any unit; without it all are equal. The engine owns
    the files: close() closes them.
    """

    def __init__(
        self,
        spill_files: Sequence[SpillFile],
        *,
        library: str,
        alignment: int,
        bytes_per_second: Sequence[float] = (),
    ) -> None:
        assert spill_files
        direct = all(file.direct for file in spill_files)
        self.name = f"{library} direct" if direct else f"{library} buffered"
        self.alignment = alignment
        self.move_device: DeviceMover | None = None
        self._stripes = tuple(
            Stripe(index, file, SlotAllocator(max(alignment, _LEAST_ALIGNMENT)), speed)
            for index, (file, speed) in enumerate(
                zip(spill_files, bytes_per_second or [1.0] * len(spill_files), strict=True)
            )
        )
        # Transfers start and end in any thread, and a finalizer may cancel one at any moment. So
        # they only append here, which needs no lock; allocate and free, which have one caller at a
        # time, process the events.
        self._events: deque[_Event] = deque()

    @property
    def end_bytes(self) -> int:
        """The bytes of all files, each up to the end of its last slot."""
        return sum(stripe.slots.end_bytes for stripe in self._stripes)

    def allocate(self, nbytes: int) -> int:
        """Allocate a slot of `nbytes` and return its offset; StoreFull if no file has room."""
        self._settle()
        full: StoreFull | None = None
        stripes = self._stripes
        if len(stripes) > 1:
            stripes = sorted(stripes, key=partial(_rank, now=time.monotonic()))
        for stripe in stripes:
            position = stripe.slots.allocate(nbytes)
            try:
                stripe.file.reserve(stripe.slots.end_bytes)
            except BaseException as error:
                stripe.slots.free(position)
                if not isinstance(error, StoreFull):
                    raise
                full = error
                continue
            return stripe.index << _POSITION_BITS | position
        assert full is not None
        raise full

    def free(self, offset: int) -> None:
        """Free the slot at `offset`."""
        self._settle()
        self._find(offset).slots.free(offset & _POSITION_MASK)

    def reserve(self, nbytes: int) -> None:
        """Preallocate `nbytes` in all, in equal parts as far as the room of each file allows.

        Raises StoreFull if there is not enough room.
        """
        lacking = nbytes
        stripes = sorted(self._stripes, key=lambda stripe: stripe.file.room_bytes)
        for left, stripe in zip(range(len(stripes), 0, -1), stripes, strict=True):
            share = -(-lacking // (left * _RESERVE_UNIT)) * _RESERVE_UNIT
            if left > 1:  # The last file has the most room, and must hold all that is left.
                share = min(share, stripe.file.room_bytes)
            stripe.file.reserve(share)
            lacking = max(0, lacking - share)

    def describe(self, offset: int) -> str:
        """The place of `offset` in words, for messages."""
        directory = self._find(offset).file.directory
        return f"the spill file in {directory} at {offset & _POSITION_MASK} ({self.name})"

    def write(self, view: memoryview, offset: int) -> IOFuture:
        """Start to write `view` at `offset`."""
        return self.track(partial(self._start, view=view), view.nbytes, offset, write=True)

    def read(self, view: memoryview, offset: int) -> IOFuture:
        """Start to fill `view` from `offset`."""
        return self.track(partial(self._start, view=view), view.nbytes, offset, write=False)

    def close(self) -> None:
        """Close the files; the subclass has finished the transfers before."""
        self._close_files()

    def abandon(self) -> None:
        """In a forked child: close its descriptors of the files, which would keep their space."""
        self._close_files()

    @abc.abstractmethod
    def _start(self, index: int, view: memoryview, position: int, *, write: bool) -> IOFuture:
        """Start to move all of `view` to or from `position` of file `index`."""

    def _close_files(self) -> None:
        for stripe in self._stripes:
            stripe.file.close()

    def _find(self, offset: int) -> Stripe:
        return self._stripes[offset >> _POSITION_BITS]

    def track(
        self, start: Callable[..., IOFuture], nbytes: int, offset: int, *, write: bool
    ) -> IOFuture:
        """Start a transfer of `nbytes` by `start(index=, position=, write=)`, and count its file.

        index: of the file. position: in it.
        """
        stripe = self._find(offset)
        future = start(index=stripe.index, position=offset & _POSITION_MASK, write=write)
        self._events.append(_Event(stripe, nbytes, None))
        future.add_done_callback(partial(self._note_end, stripe, nbytes, write))
        return future

    def _note_end(self, stripe: Stripe, nbytes: int, write: bool, future: IOFuture) -> None:
        outcome = find_outcome(future) if write else None
        failed = isinstance(outcome, Exception) if outcome is not None else None
        self._events.append(_Event(stripe, -nbytes, failed))

    def _settle(self) -> None:
        """Process the events of transfers that started or ended; one caller at a time."""
        while self._events:
            stripe, nbytes, failed = self._events.popleft()
            stripe.inflight_bytes += nbytes
            if failed is not None:
                stripe.failures = stripe.failures + 1 if failed else 0
                if stripe.failures >= FAILURES:
                    stripe.avoided_until = time.monotonic() + AVOIDED_SECONDS


def _rank(stripe: Stripe, now: float) -> tuple[bool, float, float]:
    """The sort key of `stripe` for the next slot; the lowest is chosen."""
    speed = stripe.bytes_per_second
    return (
        stripe.avoided_until > now,
        stripe.inflight_bytes / speed,
        stripe.slots.allocated_bytes / speed,
    )
