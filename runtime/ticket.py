"""What the store knows of one offloaded value."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import torch

from fxoffload.runtime.ioengine import IOEngine, IOFuture
from fxoffload.runtime.transfer import Arrival, Incoming, Layout, Outgoing


class TicketState(enum.Enum):
    """Where the bytes of a value are.

    RESIDENT -> WRITING -> STORED -> READING -> LOADED -> FREED. A write that fails or is cancelled
    goes back to RESIDENT; a value that is read again goes from LOADED back to READING.
    """

    RESIDENT = "resident"
    WRITING = "writing"
    STORED = "stored"
    READING = "reading"
    LOADED = "loaded"
    FREED = "freed"


@dataclass(slots=True, eq=False)
class Read:
    """One read in flight: its target, and what becomes of it."""

    incoming: Incoming
    future: IOFuture


@dataclass(slots=True, eq=False)
class Ticket:
    """One offloaded value; changed only under the lock of its store.

    `outgoing` is there as long as the bytes are in memory, `slot` as long as the engine holds a
    place for them, `write` until the end of the write has been noted. `reads` and `forwarded` have
    the addresses of the tensors that prefetch returned, the latter with None after `wait`;
    `prefetched` has those tensors between the ops prefetch and wait.
    """

    name: str
    size: tuple[int, ...]
    nbytes: int
    tier: str
    engine: IOEngine
    alignment: int  # Of the bytes between head and tail, enough for every tier of the store.
    layout: Layout
    owned: bool
    outgoing: Outgoing | None
    write_bytes: int = 0  # What a complete write moves.
    state: TicketState = TicketState.RESIDENT
    slot: int | None = None
    write: IOFuture | None = None
    reads: dict[int, Read] = field(default_factory=dict[int, Read])
    forwarded: dict[int, Arrival | None] = field(default_factory=dict[int, Arrival | None])
    prefetched: list[torch.Tensor] = field(default_factory=list[torch.Tensor])
    stored: bool = False  # The slot has the bytes.
    lent: bool = False  # The tensor itself went to the last backward; the bytes are nobody's.
    capped: bool = True  # Whether its bytes in flight count towards the cap on those.
    released: bool = False
    freed: bool = False
    copies: int = 0  # Copies from `outgoing` that are being made.

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
            return all(read.future.done() for read in self.reads.values())
        return not self.stored

    @property
    def host_bytes(self) -> int:
        """What the host tier's counters count of this value."""
        return self.nbytes if self.tier == "host" else 0

    def describe_place(self) -> str:
        """Where the slot lies, for messages."""
        return self.engine.name if self.slot is None else self.engine.describe(self.slot)
