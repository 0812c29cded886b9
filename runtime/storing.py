"""The way out of a value: a slot in its tier, or in the next one, and a write."""

from __future__ import annotations

from fxoffload.errors import StoreFull
from fxoffload.runtime.ioengine import IOEngine
from fxoffload.runtime.ledger import Ledger
from fxoffload.runtime.ticket import Ticket, TicketState


def start_write(ticket: Ticket, spare: IOEngine | None, ledger: Ledger) -> None:
    """Take a slot and start to write; the value stays in memory where there is no room.

    `spare` is the engine of the nvme tier, which takes what finds the host tier full. Needs the
    lock of `ledger`.
    """
    outgoing = ticket.outgoing
    assert outgoing is not None
    if ticket.nbytes == 0:
        return
    try:
        slot = _take_slot(ticket, outgoing.slot_bytes, spare, ledger)
    except StoreFull as error:
        ledger.note_failure(ticket, str(error))
        return
    ticket.slot, ticket.write_bytes = slot, outgoing.write_bytes
    ledger.counters.live_bytes += ticket.nbytes
    ledger.counters.host_live_bytes += ticket.host_bytes
    try:
        ticket.write = outgoing.write(ticket.engine, slot)
    except BaseException:
        ledger.tidy(ticket)
        raise
    ticket.state = TicketState.WRITING


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
