"""What the store knows of one offloaded value."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from fxoffload.runtime.devices.transfer import Arrival, Incoming, Layout, Outgoing
from fxoffload.runtime.engines.ioengine import IOEngine, IOFuture
from fxoffload.runtime.store.callers import CallersTensor


@dataclass(slots=True, eq=False)
class Read:
    """One read: what its bytes go to, and its future; another one when it is tried again."""

    incoming: Incoming
    future: IOFuture


@dataclass(slots=True, eq=False)
class Prefetch:
    """One way back of a value, from `prefetch` until `wait` has returned it.

    `read` is None where the value comes from memory. `taken`: a `wait` has it. `shared`: the
    arrival is the caller's tensor itself.
    """

    arrival: Arrival
    read: Read | None = None
    taken: bool = False
    shared: bool = False

    @property
    def done(self) -> bool:
        """Whether no transfer uses the slot on its behalf."""
        return self.read is None or self.read.future.done()


@dataclass(slots=True, eq=False)
class Ticket:
    """One offloaded value; changed only under the lock of its store.

    `outgoing` is there as long as the bytes are in memory, `slot` as long as the engine holds a
    place for them, `write` until the end of the write has been noted. `kept` is the tensor itself
    where the value does not move; there is neither of the others then. `caller` is there for what
    belongs to the caller; graphs that save the same share the ticket, of which they are `holders`.
    `successor`: the ticket of the same value where it moved after all.
    """

    name: str
    size: tuple[int, ...]
    nbytes: int
    tier: str
    engine: IOEngine
    alignment: int  # Of the bytes between head and tail, enough for every tier of the store.
    layout: Layout
    caller: CallersTensor | None
    outgoing: Outgoing | None
    kept: torch.Tensor | None = None
    write_bytes: int = 0  # What a complete write moves.
    slot: int | None = None
    write: IOFuture | None = None
    prefetches: list[Prefetch] = field(default_factory=list[Prefetch])
    stored: bool = False  # The slot has the bytes.
    lent: bool = False  # The tensor itself went to the last backward; the bytes are nobody's.
    in_flight: bool = False  # Whether its bytes count as being written,
    capped: bool = False  # and towards the cap on those.
    released: bool = False
    freed: bool = False
    holders: int = 1
    successor: Ticket | None = None
    copies: int = 0  # Copies from `outgoing` that are being made.

    @property
    def resident_bytes(self) -> int:
        """Bytes of the device's memory that the value takes, on its way out or back included."""
        if self.kept is not None or self.prefetches:
            return self.nbytes
        outgoing = self.outgoing
        shares = outgoing is not None and (outgoing.shares_memory or not self.released)
        return self.nbytes if shares else 0

    @property
    def outgoing_is_idle(self) -> bool:
        """Whether the bytes in memory are no longer needed."""
        if self.outgoing is None or self.write is not None or self.copies:
            return False
        if self.freed or self.lent:
            return True
        if self.outgoing.stays:
            return False
        return self.stored and (self.released or not self.outgoing.shares_memory)

    @property
    def slot_is_idle(self) -> bool:
        """Whether nobody will read the slot again and no transfer uses it."""
        if self.write is not None:
            return False
        if self.freed:
            return all(prefetch.done for prefetch in self.prefetches)
        return not self.stored

    @property
    def host_bytes(self) -> int:
        """What the host tier's counters count of this value."""
        return self.nbytes if self.tier == "host" else 0

    def describe_place(self) -> str:
        """Where the slot lies, for messages."""
        return self.engine.name if self.slot is None else self.engine.describe(self.slot)
