"""Store a value: allocate a slot in its tier, or in the nvme tier, and start the write."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial

import torch

from fxoffload.errors import StoreError, StoreFull
from fxoffload.runtime.devices.buffers import find_span
from fxoffload.runtime.devices.transfer import Device
from fxoffload.runtime.engines.ioengine import IOEngine
from fxoffload.runtime.store.callers import CallersTensor
from fxoffload.runtime.store.ledger import Ledger
from fxoffload.runtime.store.ticket import Ticket


def find_engine(engines: Mapping[str, IOEngine], tier: str, subject: str) -> IOEngine:
    """The engine of `tier`; raises StoreError without one."""
    engine = engines.get(tier)
    if engine is None:
        raise StoreError(
            f"{subject}: the store has no tier {tier!r}, only {sorted(engines)}; "
            "give host_budget to have a host tier"
        )
    return engine


def send_value(
    ledger: Ledger,
    device: Device,
    x: torch.Tensor,
    name: str,
    *,
    tier: str,
    engine: IOEngine,
    spare: IOEngine | None,
    alignment: int,
    caller: CallersTensor | None,
    duplicate_bytes: int,
) -> Ticket:
    """Start to copy `x` out; see OffloadStore.offload, and start_write for `spare`."""
    if x.requires_grad:
        x = x.detach()
    nbytes = min(find_span(x), x.nbytes)
    # The cap limits memory that transfers need in addition to the value; such a device needs none.
    capped = not device.keeps(engine)
    ledger.enter_flight(name, nbytes, capped=capped)
    ticket: Ticket | None = None
    try:
        outgoing = device.send(x, alignment, engine)
        ticket = Ticket(
            name, tuple(x.shape), nbytes, tier, engine, alignment, outgoing.layout, caller,
            outgoing, in_flight=True, capped=capped,
        )  # fmt: skip
        start_write(ticket, spare, ledger, duplicate_bytes=duplicate_bytes)
        if ticket.write is not None:
            ticket.write.add_done_callback(partial(ledger.finish_write, ticket))
    except BaseException:
        with ledger.lock:
            if ticket is None:
                ledger.leave_flight(nbytes, capped=capped)
            else:
                ledger.end_flight(ticket)
        raise
    with ledger.lock:
        ledger.shared.add(ticket)
    return ticket


def keep_value(
    ledger: Ledger,
    x: torch.Tensor,
    name: str,
    tier: str,
    engine: IOEngine,
    alignment: int,
    caller: CallersTensor | None,
    order: AbstractContextManager[object],
) -> Ticket:
    """A ticket for `x`, which stays in memory.

    tier, engine, order: used if it moves later (move_kept).
    """
    # A tensor of the store's own, so that `is_shared` counts the caller's tensor as another one.
    kept = x if caller is None and not x.requires_grad else x.detach()
    nbytes = min(find_span(x), x.nbytes)
    ticket = Ticket(
        name, tuple(x.shape), nbytes, tier, engine, alignment, None, caller, None, kept, order
    )
    with ledger.lock:
        ledger.check_open(name)
        ledger.counters.kept_bytes += nbytes
        ledger.shared.add(ticket)
    return ticket


def start_write(
    ticket: Ticket, spare: IOEngine | None, ledger: Ledger, *, duplicate_bytes: int
) -> None:
    """Allocate a slot and start the write; without room, the value stays in memory.

    spare: the engine of the nvme tier, for values that do not fit the host tier.
    """
    outgoing, counters = ticket.outgoing, ledger.counters
    assert outgoing is not None
    with ledger.lock:
        ledger.enter_start(ticket.name)
        try:
            counters.offloads += 1
            counters.offloaded_bytes += ticket.nbytes
            counters.deduplicated_bytes += duplicate_bytes
            slot = _find_slot(ticket, outgoing.slot_bytes, spare, ledger)
            if slot is None:
                ledger.end_flight(ticket)
                return
            ticket.slot, ticket.write_bytes = slot, outgoing.write_bytes
            counters.live_bytes += ticket.nbytes
            counters.host_live_bytes += ticket.host_bytes
        finally:
            if ticket.slot is None:
                ledger.leave_start()
    try:
        # If this raises (Ctrl-C), the write may have begun, and nothing tracks its end. So the slot
        # and the buffer are never reused.
        ticket.write = outgoing.write(ticket.engine, slot)
    finally:
        with ledger.lock:
            ledger.leave_start()


def _find_slot(ticket: Ticket, nbytes: int, spare: IOEngine | None, ledger: Ledger) -> int | None:
    """Allocate a slot; None if there are no bytes to write, or no room. Needs the lock."""
    if ticket.nbytes == 0:
        return None
    try:
        return _take_slot(ticket, nbytes, spare, ledger)
    except StoreFull as error:
        ledger.note_failure(ticket, str(error))
        return None


def _take_slot(ticket: Ticket, nbytes: int, spare: IOEngine | None, ledger: Ledger) -> int:
    try:
        return ticket.engine.allocate(nbytes)
    except StoreFull:
        if ticket.tier != "host" or spare is None:
            raise
        slot = spare.allocate(nbytes)
    ticket.tier, ticket.engine = "nvme", spare
    ledger.cap(ticket)
    ledger.counters.host_overflow_bytes += ticket.nbytes
    return slot
