"""Load a value: forward it from memory if it is still there, else read its slot."""

from __future__ import annotations

import errno
from collections.abc import Callable

import torch

from fxoffload.errors import ChecksumError, StoreError, TransferError
from fxoffload.runtime.devices.devices import Devices
from fxoffload.runtime.devices.transfer import Arrival, Outgoing, Present
from fxoffload.runtime.engines.checksum import DigestMismatch
from fxoffload.runtime.store.ledger import Ledger
from fxoffload.runtime.store.ticket import Prefetch, Read, Ticket
from fxoffload.sizes import format_bytes


def start_prefetch(
    ledger: Ledger,
    devices: Devices,
    ticket: Ticket,
    keeps_graph: Callable[[], bool],
    *,
    taken: bool = False,
) -> Prefetch:
    """Start to load the value: hand it back if it was kept, else forward it, else read it.

    taken: whether the calling `wait` takes this prefetch, so that no other one does. Raises
    ModifiedError for a tensor of the caller that was changed in place.
    """
    if ticket.caller is not None:
        ticket.caller.check_unchanged(ticket.name)
    prefetch = None
    if ticket.kept is not None:
        prefetch = hand_back(ledger, ticket, keeps_graph)
    if prefetch is None:
        prefetch = forward_value(ledger, ticket, keeps_graph)
    if prefetch is None:
        prefetch = start_read(ledger, devices, ticket)
    prefetch.taken = taken
    with ledger.lock:
        ticket.prefetches.append(prefetch)
    return prefetch


def hand_back(ledger: Ledger, ticket: Ticket, keeps_graph: Callable[[], bool]) -> Prefetch | None:
    """Return the kept value or a copy of it; None if the value was not kept.

    A backward may overwrite a value that the graph owns. If another backward may follow, this one
    gets a copy. A backward never overwrites a tensor of the caller, which is returned itself.
    """
    with ledger.lock:
        ledger.check_open(ticket.name)
        kept = ticket.kept
        if kept is None:
            return None
        last = not keeps_graph() and ticket.holders == 1
        if last:
            ticket.kept, ticket.lent = None, True
    # The graph counts offsets from the first byte of the value.
    shared = ticket.caller is not None
    if kept.storage_offset() or (not last and not shared):
        kept, shared = kept.clone(memory_format=torch.preserve_format), False
    return Prefetch(Present(kept), shared=shared)


def forward_value(
    ledger: Ledger, ticket: Ticket, keeps_graph: Callable[[], bool]
) -> Prefetch | None:
    """Return the value from memory; None if only its slot has it.

    keeps_graph: whether another backward may follow. If not, a queued write is cancelled, and a
    tensor that the graph owns is returned without a copy.
    """
    if ticket.outgoing is None and not ticket.lent:
        return None  # This never changes back, so it needs no lock.
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
        last = not keeps_graph() and ticket.holders == 1
        if last and write is not None and write.cancel():
            ledger.finish_write(ticket, write)
        arrival = _lend(ledger, ticket, outgoing) if last and ticket.caller is None else None
        lent = arrival is not None
        if arrival is None:
            arrival = outgoing.forward()
        with ledger.lock:
            counters = ledger.counters
            if lent or not outgoing.crosses_bus:
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
    return Prefetch(arrival)


def start_read(ledger: Ledger, devices: Devices, ticket: Ticket) -> Prefetch:
    """Allocate a tensor and start to read the slot into it."""
    layout = ticket.layout
    assert layout is not None, "a value that was kept has no slot"
    incoming = devices.find(layout.device).receive(layout, ticket.alignment, ticket.engine)
    # On an exception (Ctrl-C) the read may have begun, so the buffer of `incoming` is not reused.
    future = ledger.start_read(ticket, incoming)
    future.add_done_callback(lambda _: ledger.finish_read(ticket))  # May close `incoming`.
    return Prefetch(incoming, Read(incoming, future))


def finish_prefetch(ledger: Ledger, ticket: Ticket, prefetch: Prefetch) -> torch.Tensor:
    """Wait for the value and return it; retry a failed read once, then raise TransferError."""
    read, arrival = prefetch.read, prefetch.arrival
    error = None
    if read is not None:
        error = _find_read_error(ledger, ticket, read)
        if error is not None:
            read.future = ledger.start_read(ticket, read.incoming)
            error = _find_read_error(ledger, ticket, read)
    if error is None:
        arrival.finish()
    with ledger.lock:
        ticket.prefetches.remove(prefetch)
        if error is not None:
            arrival.close()
        elif read is not None:
            ledger.counters.read_bytes += ticket.nbytes
            ledger.counters.host_read_bytes += ticket.host_bytes
    if error is None:
        y = arrival.y
        return y if y.shape == ticket.size else y.expand(ticket.size)
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


def _lend(ledger: Ledger, ticket: Ticket, outgoing: Outgoing) -> Arrival | None:
    with ledger.lock:
        # Before the release, the program may still read the tensor or reuse its memory.
        y = outgoing.lend() if ticket.released and not ticket.lent else None
        if y is None:
            return None
        # From here on the backward may write to it, so the bytes in the slot may become stale.
        ticket.lent = True
        ticket.stored = False
        return Present(y)


def _find_read_error(ledger: Ledger, ticket: Ticket, read: Read) -> Exception | None:
    """Wait for the read and return its error; None if it has read every byte."""
    expected = read.incoming.read_bytes
    outcome = ledger.wait_exposed(read.future)
    if outcome == expected:
        return None
    with ledger.lock:
        ledger.counters.read_errors += 1
        ledger.counters.checksum_errors += isinstance(outcome, DigestMismatch)
    if isinstance(outcome, Exception):
        return outcome
    return OSError(errno.EIO, f"short read: {outcome or 0} of {expected} bytes")
