"""The ledger: the state that all values of a store share, and the lock that guards it.

It counts the bytes in flight, ends transfers, and frees tickets.

Locking: one plain lock guards tickets, slots and counters. A thread that holds it neither submits
a transfer nor waits for one, so it releases the lock soon. A finalizer may run at any allocation,
also in a thread that already holds this lock or an executor's lock. Therefore `bury` queues the
ticket, and frees it only if the lock is free. Otherwise the next call, or the end of a transfer,
empties the queue.

Forks: a direct read that is in progress during a fork may end in memory pages of the child on older
kernels (open(2), O_DIRECT). Therefore reads pause while the process forks.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections import deque

from fxoffload.errors import StoreClosed
from fxoffload.inflight import find_inflight_cap
from fxoffload.runtime.devices.transfer import Incoming
from fxoffload.runtime.engines.ioengine import IOFuture, find_outcome
from fxoffload.runtime.store.counters import StoreStatistics
from fxoffload.runtime.store.sharing import SharedTickets
from fxoffload.runtime.store.ticket import Ticket
from fxoffload.sizes import format_bytes

log = logging.getLogger(__name__)

PAUSE_SECONDS = 60.0  # After this time a drive that has not ended its reads is taken to hang.
POLL_SECONDS = 0.0005


class Ledger:
    """The lock of a store, and the state that it guards, `counters` included."""

    def __init__(self, max_inflight_bytes: int | None) -> None:
        self.lock = threading.Lock()
        self.counters = StoreStatistics()
        self.closed = False
        self._max_inflight_bytes = max_inflight_bytes
        # Notified when there are fewer bytes in flight, fewer starts, or no pause.
        self._changed = threading.Condition(self.lock)
        self._capped_bytes = 0  # The part of the bytes in flight that the cap limits.
        self._largest_bytes = 0  # Of a value that entered the flight.
        self._starting = 0  # Transfers that are being handed to an engine.
        self._paused = False
        self._reads: set[IOFuture] = set()  # Changed by atomic operations, without the lock.
        self._dead: deque[Ticket] = deque()
        self.shared = SharedTickets()
        self._failure: str | None = None
        self._warned = False

    def check_open(self, subject: str) -> None:
        """Raise StoreClosed after close."""
        if self.closed:
            raise StoreClosed(
                f"{subject}: the store is closed; compile the model again to open a new one"
            )

    def close(self) -> bool:
        """Refuse new transfers and wait for those that are starting; False if already closed."""
        with self.lock:
            if self.closed:
                return False
            self.closed = True
            self._changed.notify_all()
            while self._starting:
                self._changed.wait()
            return True

    def catch_up(self) -> None:
        """Free the queued tickets and warn of a failed write; call it without holding the lock."""
        if self._dead:
            self._free_dead(wait=True)
        if self._failure is not None:
            self.warn_once()

    def warn_once(self) -> None:
        """Warn of the first failed write, in the caller's thread, once per store."""
        with self.lock:
            message, self._failure = self._failure, None
            if message is None or self._warned:
                return
            self._warned = True
        warnings.warn(message, RuntimeWarning, stacklevel=4)

    # What is in flight

    def enter_flight(self, subject: str, nbytes: int, *, capped: bool) -> None:
        """Add `nbytes` to the bytes in flight; wait for earlier writes if the cap is reached."""
        counters = self.counters
        with self.lock:
            self.check_open(subject)
            self._largest_bytes = max(self._largest_bytes, nbytes)
            if capped and self._is_over_cap(nbytes):
                start = time.perf_counter()
                while self._is_over_cap(nbytes):
                    self._changed.wait()
                counters.exposed_seconds += time.perf_counter() - start
                self.check_open(subject)
            counters.inflight_bytes += nbytes
            self._capped_bytes += nbytes if capped else 0
            counters.peak_inflight_bytes = max(
                counters.peak_inflight_bytes, counters.inflight_bytes
            )

    def leave_flight(self, nbytes: int, *, capped: bool) -> None:
        """Subtract `nbytes` from the bytes in flight. Needs the lock."""
        self.counters.inflight_bytes -= nbytes
        self._capped_bytes -= nbytes if capped else 0
        self._changed.notify_all()

    def end_flight(self, ticket: Ticket) -> None:
        """Subtract the bytes of `ticket` from those in flight, once. Needs the lock."""
        if ticket.in_flight:
            ticket.in_flight = False
            self.leave_flight(ticket.nbytes, capped=ticket.capped)

    def cap(self, ticket: Ticket) -> None:
        """Count the bytes of `ticket`, which are in flight, towards the cap. Needs the lock."""
        if not ticket.capped:
            ticket.capped = True
            self._capped_bytes += ticket.nbytes

    # The start of transfers

    def enter_start(self, subject: str) -> None:
        """Note that a transfer is about to be passed to an engine. Needs the lock."""
        self.check_open(subject)
        self._starting += 1

    def leave_start(self) -> None:
        """Note that the engine has accepted or refused the transfer. Needs the lock."""
        self._starting -= 1
        if self.closed:
            self._changed.notify_all()

    def start_read(self, ticket: Ticket, incoming: Incoming) -> IOFuture:
        """Start to read the slot of `ticket`; wait for the end of a fork first."""
        with self.lock:
            while self._paused:
                self._changed.wait()
            self.enter_start(ticket.name)
        try:
            # A value that is not in memory has been written, so the write has ended.
            assert ticket.stored
            assert ticket.slot is not None
            future = incoming.read(ticket.engine, ticket.slot)
            self._reads.add(future)
        finally:
            with self.lock:
                self.leave_start()
        future.add_done_callback(self._reads.discard)
        return future

    def pause_reads(self) -> None:
        """Start no read until `resume_reads`, and wait for the started ones."""
        with self.lock:
            self._paused = True
        deadline = time.monotonic() + PAUSE_SECONDS
        while self._starting or not all(future.done() for future in list(self._reads)):
            if time.monotonic() > deadline:
                log.warning("the process forks while a read hangs: its bytes may be lost")
                return
            time.sleep(POLL_SECONDS)

    def resume_reads(self) -> None:
        """Allow reads again, after the fork."""
        with self.lock:
            self._paused = False
            self._changed.notify_all()

    # The end of transfers

    def wait_exposed(self, future: IOFuture) -> int | Exception | None:
        """find_outcome, whose waiting time counts as exposed."""
        if future.done():
            return find_outcome(future)
        start = time.perf_counter()
        outcome = find_outcome(future)
        with self.lock:
            self.counters.exposed_seconds += time.perf_counter() - start
        return outcome

    def wait_written(self, ticket: Ticket, future: IOFuture) -> None:
        """Wait for the end of a write, and account for it."""
        self.wait_exposed(future)
        self.finish_write(ticket, future)

    def finish_write(self, ticket: Ticket, future: IOFuture) -> None:
        """Account for the end of the write `future`, which is done; a second call does nothing."""
        if ticket.write is not future:  # `_free` clears it before it cancels the write.
            return
        outcome = find_outcome(future)
        with self.lock:
            if ticket.write is future:
                self._end_write(ticket, outcome)
                self.tidy(ticket)
        self._free_dead(wait=False)

    def finish_read(self, ticket: Ticket) -> None:
        """Free the slot after a read whose ticket was freed meanwhile."""
        if ticket.freed:  # If not, the thread that frees the ticket later finds the read done.
            with self.lock:
                self.tidy(ticket)
        self._free_dead(wait=False)

    def note_failure(self, ticket: Ticket, reason: str) -> None:
        """Count a failed write, whose value stays in memory; prepare a warning. Needs the lock."""
        self.counters.write_errors += 1
        self._failure = (
            f"{ticket.name}: {format_bytes(ticket.nbytes)} ({ticket.nbytes} bytes) could not be "
            f"offloaded ({reason}); the value stays in memory and nothing is lost, but the peak "
            "is higher. Said once: write_errors in statistics() counts on"
        )

    def tidy(self, ticket: Ticket) -> None:
        """Free the memory, slot and prefetches of `ticket` that nothing uses. Needs the lock."""
        if ticket.outgoing is not None and ticket.outgoing_is_idle:
            ticket.outgoing.close()
            ticket.outgoing = None
        if ticket.slot is not None and ticket.slot_is_idle:
            ticket.engine.free(ticket.slot)
            ticket.slot = None
            self.counters.live_bytes -= ticket.nbytes
            self.counters.host_live_bytes -= ticket.host_bytes
        if ticket.freed and ticket.slot is None:
            while ticket.prefetches:
                ticket.prefetches.pop().arrival.close()

    def bury(self, ticket: Ticket) -> None:
        """Free `ticket`, now or later; safe in a finalizer, in any thread."""
        self._dead.append(ticket)
        self._free_dead(wait=False)

    def _free_dead(self, *, wait: bool) -> None:
        while self._dead and self.lock.acquire(blocking=wait):
            try:
                if self._dead:  # Only the holder of the lock removes a ticket.
                    self._free(self._dead.popleft())
            finally:
                self.lock.release()

    def _free(self, ticket: Ticket) -> None:
        """Drop one holder of `ticket`; free it with the last one. Needs the lock.

        It cancels transfers, whose callbacks do not take the lock.
        """
        ticket.holders -= 1
        if ticket.holders:
            return
        self.shared.remove(ticket)
        write, ticket.write = ticket.write, None
        if write is not None:
            if write.cancel():
                self._end_write(ticket, None)
            else:
                ticket.write = write
                if write.done():  # Its callback may have run while ticket.write was None.
                    self._end_write(ticket, find_outcome(write))
        for prefetch in ticket.prefetches:
            if prefetch.read is not None:
                prefetch.read.future.cancel()
        ticket.freed = True
        ticket.kept = None
        self.tidy(ticket)

    def _end_write(self, ticket: Ticket, outcome: int | Exception | None) -> None:
        """Count the outcome of a write, see find_outcome. Needs the lock."""
        ticket.write = None
        self.end_flight(ticket)
        if outcome is None:
            self.counters.cancelled_bytes += ticket.nbytes
        elif outcome != ticket.write_bytes:
            reason = outcome if isinstance(outcome, Exception) else f"short write of {outcome}"
            self.note_failure(ticket, f"writing to {ticket.describe_place()}: {reason}")
        else:
            self.counters.written_bytes += ticket.nbytes
            self.counters.host_written_bytes += ticket.host_bytes
            ticket.stored = not ticket.lent

    def _is_over_cap(self, nbytes: int) -> bool:
        inflight = self._capped_bytes
        cap = find_inflight_cap(self._max_inflight_bytes, self._largest_bytes)
        return not self.closed and inflight > 0 and inflight + nbytes > cap
