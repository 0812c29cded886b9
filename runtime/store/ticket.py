"""The ticket: the store's record of one offloaded value, and of its reads."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

from fxoffload.runtime.devices.transfer import Arrival, Incoming, Layout, Outgoing
from fxoffload.runtime.engines.ioengine import IOEngine, IOFuture
from fxoffload.runtime.store.callers import CallersTensor


@dataclass(slots=True, eq=False)
class Read:
    """One read: its destination, and its future, which a retry replaces."""

    incoming: Incoming
    future: IOFuture


@dataclass(slots=True, eq=False)
class Prefetch:
    """One load of a value, from `prefetch` until `wait` has returned it.

    read: None if the value comes from memory. taken: whether a `wait` has taken it. shared:
    whether the arrival is the caller's tensor itself.
    """

    arrival: Arrival
    read: Read | None = None
    taken: bool = False
    shared: bool = False

    @property
    def done(self) -> bool:
        """Whether this load has no read in progress."""
        return self.read is None or self.read.future.done()


@dataclass(slots=True, eq=False)
class Ticket:
    """One offloaded value; changed only under the lock of its store.

    outgoing: set while the bytes are in memory. slot: set while the engine has a slot for them.
    write: set until the end of the write has been counted. kept: the tensor itself if the value
    stays in memory; the three others and `layout` are None then. caller: set if the tensor belongs
    to the caller; graphs that save the same tensor share the ticket. holders: the number of these
    graphs. order: the context in which a kept value moves later, see Device.find_order. successor:
    the new ticket of a kept value that was moved later (OffloadStore.move_kept).
    """

    name: str
    size: tuple[int, ...]
    nbytes: int
    tier: str
    engine: IOEngine
    alignment: int  # Of the bytes between head and tail; the largest of all tiers.
    layout: Layout | None
    caller: CallersTensor | None
    outgoing: Outgoing | None
    kept: torch.Tensor | None = None
    order: AbstractContextManager[object] = field(default_factory=nullcontext[None])
    write_bytes: int = 0  # The bytes of a complete write.
    slot: int | None = None
    write: IOFuture | None = None
    prefetches: list[Prefetch] = field(default_factory=list[Prefetch])
    stored: bool = False  # Whether the slot has the bytes.
    lent: bool = False  # Whether the last backward got the tensor itself and may overwrite it.
    in_flight: bool = False  # Whether its bytes count as in flight.
    capped: bool = False  # Whether they count towards the cap on bytes in flight.
    released: bool = False
    freed: bool = False
    holders: int = 1
    successor: Ticket | None = None
    copies: int = 0  # The number of copies from `outgoing` in progress.

    @property
    def resident_bytes(self) -> int:
        """Bytes that the value takes in the device's memory, while it is stored or loaded, too."""
        if self.kept is not None or self.prefetches:
            return self.nbytes
        outgoing = self.outgoing
        shares = outgoing is not None and (outgoing.shares_memory or not self.released)
        return self.nbytes if shares else 0

    @property
    def outgoing_is_idle(self) -> bool:
        """Whether the bytes in memory can be freed."""
        if self.outgoing is None or self.write is not None or self.copies:
            return False
        if self.freed or self.lent:
            return True
        if self.outgoing.stays:
            return False
        return self.stored and (self.released or not self.outgoing.shares_memory)

    @property
    def slot_is_idle(self) -> bool:
        """Whether the slot can be freed: no transfer uses it, and none will read it."""
        if self.write is not None:
            return False
        if self.freed:
            return all(prefetch.done for prefetch in self.prefetches)
        return not self.stored

    @property
    def host_bytes(self) -> int:
        """The bytes of this value in the counters of the host tier."""
        return self.nbytes if self.tier == "host" else 0

    def describe_place(self) -> str:
        """The place of the slot in words, for messages."""
        return self.engine.name if self.slot is None else self.engine.describe(self.slot)
