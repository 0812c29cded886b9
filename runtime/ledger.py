"""What holds for all values of a store: one lock, bytes in flight, and how transfers end.

Locking: one plain lock guards tickets, slots and counters. Nothing that can call back into the
store runs under it: futures are cancelled and given their callbacks outside. A finalizer may run
at any allocation, also in a thread that holds the lock, so `bury` only queues the ticket and takes
the lock when it can be had at once; the queue is emptied at the next call or end of a transfer.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections import deque

from fxoffload.errors import StoreClosed
from fxoffload.runtime.counters import Counters, format_bytes
from fxoffload.runtime.ioengine import IOFuture, find_outcome
from fxoffload.runtime.ticket import Ticket, TicketState


class Ledger:
    """The lock of a store and the state under it; `counters` too are read and changed under it."""

    def __init__(self, max_inflight_bytes: int) -> None:
        self.lock = threading.Lock()
        self.counters = Counters()
        self.closed = False
        self._max_inflight_bytes = max_inflight_bytes
        self._room = threading.Condition(self.lock)
        self._capped_bytes = 0  # Of those in flight.
        self._dead: deque[Ticket] = deque()
        self._failure: str | None = None
        self._warned = False

    def check_open(self, subject: str) -> None:
        """Raise StoreClosed after close."""
        if self.closed:
            raise StoreClosed(
                f"{subject}: the store is closed; compile the model again to open a new one"
            )

    def catch_up(self) -> None:
        """Free what died and warn of a failed write; called where no lock is held."""
        if self._dead:
            self._free_dead()
        if self._failure is not None:
            self.warn_once()

    def warn_once(self) -> None:
        """Warn of the first failed write, in the caller's thread, once in the store's life."""
        with self.lock:
            message, self._failure = self._failure, None
            if message is None or self._warned:
                return
            self._warned = True
        warnings.warn(message, RuntimeWarning, stacklevel=4)

    def enter_flight(self, subject: str, nbytes: int, *, capped: bool) -> None:
        """Count `nbytes` as being written; at the cap, wait until earlier writes have ended."""
        counters = self.counters
        with self.lock:
            self.check_open(subject)
            if capped and self._is_over_cap(nbytes):
                start = time.perf_counter()
                while self._is_over_cap(nbytes):
                    self._room.wait()
                counters.exposed_seconds += time.perf_counter() - start
                self.check_open(subject)
            counters.inflight_bytes += nbytes
            self._capped_bytes += nbytes if capped else 0
            counters.peak_inflight_bytes = max(
                counters.peak_inflight_bytes, counters.inflight_bytes
            )

    def leave_flight(self, nbytes: int, *, capped: bool) -> None:
        """`nbytes` are no longer being written. Needs the lock."""
        self.counters.inflight_bytes -= nbytes
        self._capped_bytes -= nbytes if capped else 0
        self._room.notify_all()

    def cap(self, ticket: Ticket) -> None:
        """Count the bytes of `ticket`, which are in flight, towards the cap. Needs the lock."""
        if not ticket.capped:
            ticket.capped = True
            self._capped_bytes += ticket.nbytes

    def wait_exposed(self, future: IOFuture) -> int | Exception | None:
        """As find_outcome; the time that it takes is exposed."""
        if future.done():
            return find_outcome(future)
        start = time.perf_counter()
        outcome = find_outcome(future)
        with self.lock:
            self.counters.exposed_seconds += time.perf_counter() - start
        return outcome

    def finish_write(self, ticket: Ticket, future: IOFuture) -> None:
        """Note the end of a write: `future` is done. Who comes second finds nothing to do."""
        outcome = find_outcome(future)
        with self.lock:
            if ticket.write is not future:
                return
            ticket.write = None
            self.leave_flight(ticket.nbytes, capped=ticket.capped)
            if outcome is None:
                self.counters.cancelled_bytes += ticket.nbytes
                ticket.state = TicketState.RESIDENT
            elif outcome != ticket.write_bytes:
                reason = outcome if isinstance(outcome, Exception) else f"short write of {outcome}"
                self.note_failure(ticket, f"writing to {ticket.describe_place()}: {reason}")
            else:
                self.counters.written_bytes += ticket.nbytes
                self.counters.host_written_bytes += ticket.host_bytes
                ticket.stored = not ticket.lent
                if ticket.stored:
                    ticket.state = TicketState.STORED
            self.tidy(ticket)
        if self._dead:
            self._free_dead()

    def finish_read(self, ticket: Ticket) -> None:
        """A read has ended, perhaps after its ticket died."""
        if ticket.freed:  # Who frees it from now on finds the read done.
            with self.lock:
                self.tidy(ticket)
        if self._dead:
            self._free_dead()

    def note_failure(self, ticket: Ticket, reason: str) -> None:
        """The bytes of `ticket` could not be written and stay in memory. Needs the lock."""
        self.counters.write_errors += 1
        ticket.state = TicketState.RESIDENT
        self._failure = (
            f"{ticket.name}: {format_bytes(ticket.nbytes)} ({ticket.nbytes} bytes) could not be "
            f"offloaded ({reason}); the value stays in memory and nothing is lost, but the peak "
            "is higher. Said once: write_errors in statistics() counts on"
        )

    def tidy(self, ticket: Ticket) -> None:
        """Give back whatever of `ticket` is no longer needed. Needs the lock."""
        if ticket.outgoing is not None and ticket.outgoing_is_idle:
            ticket.outgoing.close()
            ticket.outgoing = None
        if ticket.slot is not None and ticket.slot_is_idle:
            for read in ticket.reads.values():
                read.incoming.close()
            ticket.reads.clear()
            ticket.engine.free(ticket.slot)
            ticket.slot = None
            self.counters.live_bytes -= ticket.nbytes
            self.counters.host_live_bytes -= ticket.host_bytes
        if ticket.freed:
            for arrival in ticket.forwarded.values():
                if arrival is not None:
                    arrival.close()
            ticket.forwarded.clear()
        if ticket.freed and ticket.slot is None:
            ticket.state = TicketState.FREED

    def bury(self, ticket: Ticket) -> None:
        """Nobody will ask for `ticket` again; safe in a finalizer, in any thread, at any time."""
        self._dead.append(ticket)
        # The lock is not re-entrant: having had it proves that this thread is not inside.
        if self.lock.acquire(blocking=False):
            self.lock.release()
            self._free_dead()

    def _free_dead(self) -> None:
        while self._dead:
            try:
                ticket = self._dead.popleft()
            except IndexError:  # Another thread took the last one.
                return
            with self.lock:
                ticket.freed = True
                write = ticket.write
                reads = [read.future for read in ticket.reads.values()]
            if write is not None and write.cancel():
                self.finish_write(ticket, write)
            for read in reads:
                read.cancel()
            with self.lock:
                self.tidy(ticket)

    def _is_over_cap(self, nbytes: int) -> bool:
        inflight = self._capped_bytes
        return inflight > 0 and inflight + nbytes > self._max_inflight_bytes
