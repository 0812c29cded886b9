"""The way back of a value: from memory while it still is there, else from its slot."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

import torch

from fxoffload.errors import ChecksumError, StoreError, TransferError
from fxoffload.runtime.checksum import DigestMismatch
from fxoffload.runtime.counters import format_bytes
from fxoffload.runtime.ioengine import IOFuture
from fxoffload.runtime.ledger import Ledger
from fxoffload.runtime.ticket import Read, Ticket, TicketState
from fxoffload.runtime.transfer import Device, Outgoing


def forward_value(
    ledger: Ledger,
    ticket: Ticket,
    size: Sequence[int],
    stride: Sequence[int],
    keeps_graph: Callable[[], bool],
) -> torch.Tensor | None:
    """The value from memory, or None when it is only in its slot.

    `keeps_graph` tells whether another backward may follow: if not, a queued write is cancelled,
    and a tensor that is ours is handed back itself.
    """
    if ticket.outgoing is None and not ticket.lent:
        return None  # For good, so that this needs no lock.
    with ledger.lock:
        ledger.check_open(ticket.name)
        if ticket.lent:
            raise StoreError(
                f"{ticket.name}: its tensor was given to a backward that was to be the last; "
                "pass retain_graph=True to every backward but the last"
            )
        outgoing, write = ticket.outgoing, ticket.write
        if outgoing is None:
            return None
        ticket.copies += 1  # Keeps `outgoing` open while it is read.
    try:
        last = not keeps_graph()
        if last and write is not None and write.cancel():
            ledger.finish_write(ticket, write)
        arrival = None
        y = _lend(ledger, ticket, outgoing, size, stride) if last and ticket.owned else None
        if y is None:
            arrival = outgoing.forward(size, stride)
            y = arrival.y
        with ledger.lock:
            ticket.forwarded[y.data_ptr()] = arrival
            counters = ledger.counters
            if arrival is None or not outgoing.crosses_bus:
                counters.forwarded_bytes += ticket.nbytes
            elif outgoing.stays:
                counters.read_bytes += ticket.nbytes
                counters.host_read_bytes += ticket.host_bytes
            else:
                counters.staged_bytes += ticket.nbytes
    finally:
        with ledger.lock:
            ticket.copies -= 1
            ledger.tidy(ticket)
    return y


def start_read(
    ledger: Ledger, device: Device, ticket: Ticket, size: Sequence[int], stride: Sequence[int]
) -> torch.Tensor:
    """Allocate a tensor and start to read the slot into it."""
    incoming = device.receive(ticket.layout, size, stride, ticket.alignment)
    try:
        with ledger.lock:
            ledger.check_open(ticket.name)
            # What is not in memory was written: no read can overtake its write.
            assert ticket.stored
            assert ticket.slot is not None
            future = ticket.engine.read(incoming.view, ticket.slot)
            ticket.reads[incoming.y.data_ptr()] = Read(incoming, future)
            ticket.state = TicketState.READING
    except BaseException:
        incoming.close()
        raise

    def end(future: IOFuture) -> None:
        try:
            incoming.arrive(future)
        finally:
            ledger.finish_read(ticket)  # May close `incoming`.

    future.add_done_callback(end)
    return incoming.y


def finish_read(ledger: Ledger, ticket: Ticket, y: torch.Tensor) -> None:
    """Wait until `y` is valid; a failed read is tried once more, then raises TransferError."""
    address = y.data_ptr()
    with ledger.lock:
        ledger.check_open(ticket.name)
        read = ticket.reads.get(address)
        known = address in ticket.forwarded or ticket.nbytes == 0
        arrival = ticket.forwarded.get(address)
        if arrival is not None:
            ticket.forwarded[address] = None
        if read is None and not known:
            raise StoreError(
                f"{ticket.name}: wait was given a tensor that no prefetch of this ticket "
                "returned; a pass or the compiler copied it between prefetch and wait"
            )
    if read is None:
        if arrival is not None:
            arrival.finish()
        return
    error = _find_read_error(ledger, ticket, read)
    if error is not None:
        with ledger.lock:
            ledger.check_open(ticket.name)
            assert ticket.slot is not None
            read.future = ticket.engine.read(read.incoming.view, ticket.slot)
        error = _find_read_error(ledger, ticket, read)
    if error is None:
        read.incoming.finish()
    with ledger.lock:
        del ticket.reads[address]
        if error is None:
            ledger.counters.read_bytes += ticket.nbytes
            ledger.counters.host_read_bytes += ticket.host_bytes
            ticket.state = TicketState.READING if ticket.reads else TicketState.LOADED
            return
        read.incoming.close()
        ticket.state = TicketState.STORED
    value = f"{ticket.name}: {format_bytes(ticket.nbytes)} ({ticket.nbytes} bytes)"
    if isinstance(error, DigestMismatch):
        raise ChecksumError(
            f"{value} came back changed from {ticket.describe_place()}, also when read again: "
            f"{error.strerror}; the disk or the memory is failing: check both, and go on from a "
            "checkpoint"
        ) from error
    raise TransferError(
        f"{value} could not be read from {ticket.describe_place()}, twice: {error}; "
        "check the disk and run again"
    ) from error


def _lend(
    ledger: Ledger, ticket: Ticket, outgoing: Outgoing, size: Sequence[int], stride: Sequence[int]
) -> torch.Tensor | None:
    with ledger.lock:
        # Before release the program may still read the tensor, or reuse its memory after it.
        y = outgoing.lend(size, stride) if ticket.released and not ticket.lent else None
        if y is not None:
            # The backward may write to it from now on, so the slot's bytes may become wrong.
            ticket.lent = True
            ticket.stored = False
            ticket.state = TicketState.LOADED
        return y


def _find_read_error(ledger: Ledger, ticket: Ticket, read: Read) -> Exception | None:
    """Wait for the read; None when every byte came."""
    expected = len(read.incoming.view)
    outcome = ledger.wait_exposed(read.future)
    if outcome == expected:
        return None
    with ledger.lock:
        ledger.counters.read_errors += 1
        ledger.counters.checksum_errors += isinstance(outcome, DigestMismatch)
    if isinstance(outcome, Exception):
        return outcome
    return OSError(errno.EIO, f"short read: {outcome or 0} of {expected} bytes")
