"""The asynchronous store: values go out, come back, and are forwarded while still in memory.

    offload    RESIDENT -> WRITING -> STORED     (a failed or cancelled write: back to RESIDENT)
    release    the memory of x is the program's again
    prefetch   RESIDENT, WRITING: forwarded from memory;  STORED -> READING
    wait       READING -> LOADED
    free       -> FREED, when no transfer uses the slot any more

`fxoffload.runtime.ledger` has the rules of locking.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from fxoffload.errors import StoreError
from fxoffload.runtime.buffers import find_span
from fxoffload.runtime.counters import StoreStatistics
from fxoffload.runtime.devices import Devices
from fxoffload.runtime.ioengine import IOEngine
from fxoffload.runtime.ledger import Ledger
from fxoffload.runtime.loading import finish_read, forward_value, start_read
from fxoffload.runtime.memory import MemoryEngine
from fxoffload.runtime.storing import start_write
from fxoffload.runtime.ticket import Ticket


class OffloadStore:
    """Moves values to engines and back; every method may be called by any thread.

    `engines` maps each tier to its engine, which the store owns; what finds the "host" tier full
    goes to "nvme". `max_inflight_bytes` caps the bytes being written: at the cap an offload waits,
    and one value larger than the cap goes alone. `keeps_graph` tells inside a backward whether a
    second one may follow; only when it says no is the offloaded tensor itself handed back instead
    of a copy.
    """

    def __init__(
        self,
        engines: Mapping[str, IOEngine],
        *,
        max_inflight_bytes: int,
        keeps_graph: Callable[[], bool] = lambda: True,
    ) -> None:
        self.engines = dict(engines)
        # One for all tiers, so that a value prepared for one can go to another.
        self._alignment = max(engine.alignment for engine in self.engines.values())
        self._keeps_graph = keeps_graph
        self._ledger = Ledger(max_inflight_bytes)
        host = [engine for engine in self.engines.values() if isinstance(engine, MemoryEngine)]
        self._devices = Devices(sum(engine.capacity_bytes for engine in host))

    @property
    def closed(self) -> bool:
        """Whether close was called."""
        return self._ledger.closed

    def offload(
        self, x: torch.Tensor, name: str, tier: str, owned: bool, duplicate_bytes: int = 0
    ) -> Ticket:
        """Start to copy `x` out; `x` must not change before `release`.

        `owned` is False when `x` belongs to the caller and may never be handed back itself.
        """
        ledger = self._ledger
        ledger.catch_up()
        engine = self._find_engine(tier, name)
        device = self._devices.find(x.device)
        if x.requires_grad:
            x = x.detach()
        nbytes = min(find_span(x), x.nbytes)
        # The cap is for memory that transfers take beside the values': here there is none.
        capped = not device.keeps(engine)
        ledger.enter_flight(name, nbytes, capped=capped)
        ticket: Ticket | None = None
        try:
            outgoing = device.send(x, self._alignment)
            size, layout = tuple(x.shape), outgoing.layout
            ticket = Ticket(
                name, size, nbytes, tier, engine, self._alignment, layout, owned, outgoing,
                capped=capped,
            )  # fmt: skip
            with ledger.lock:
                counters = ledger.counters
                ledger.check_open(name)
                start_write(ticket, self.engines.get("nvme"), ledger)
                counters.offloads += 1
                counters.offloaded_bytes += nbytes
                counters.deduplicated_bytes += duplicate_bytes
                if ticket.write is None:
                    ledger.leave_flight(nbytes, capped=ticket.capped)
        except BaseException:
            with ledger.lock:
                ledger.leave_flight(nbytes, capped=capped if ticket is None else ticket.capped)
            raise
        if ticket.write is not None:
            ticket.write.add_done_callback(partial(ledger.finish_write, ticket))
        return ticket

    def release(self, ticket: Ticket, block: bool) -> None:
        """The program no longer reads x; with `block` its memory may be overwritten on return.

        Without `block` the store lets go of x when it has been written. A value that could not
        be written stays in memory: as a copy with `block`, else as x itself.
        """
        ledger = self._ledger
        ledger.catch_up()
        with ledger.lock:
            ledger.check_open(ticket.name)
            ticket.released = True
            ledger.tidy(ticket)
            outgoing, write = ticket.outgoing, ticket.write
        if outgoing is None:
            return
        outgoing.release()
        if block and outgoing.shares_memory:
            if write is not None:
                ledger.wait_exposed(write)
                ledger.finish_write(ticket, write)
            with ledger.lock:
                if ticket.outgoing is not None:
                    ticket.outgoing.keep_copy()
            ledger.catch_up()

    def prefetch(
        self,
        ticket: Ticket,
        size: Sequence[int],
        stride: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> torch.Tensor:
        """A tensor that holds the value once `wait` has returned for it."""
        self._ledger.catch_up()
        layout = ticket.layout
        if ticket.size != tuple(size) or (layout.dtype, layout.device.type) != (dtype, device.type):
            raise StoreError(
                f"{ticket.name}: {layout.dtype}{list(ticket.size)} on {layout.device} was "
                f"offloaded and {dtype}{list(size)} on {device} is asked for; "
                "the forward and the backward graph do not belong together"
            )
        return self._start(ticket, size, stride)

    def prefetch_ahead(self, ticket: Ticket) -> None:
        """Start to bring the value back, as it went out; `take` returns it."""
        ledger = self._ledger
        ledger.catch_up()
        y = self._start(ticket, ticket.size, ticket.layout.stride)
        with ledger.lock:
            ticket.prefetched.append(y)

    def take(self, ticket: Ticket) -> torch.Tensor:
        """The value that `prefetch_ahead` started to bring back, or is brought back now.

        A read that fails is tried once more; then TransferError is raised.
        """
        ledger = self._ledger
        ledger.catch_up()
        with ledger.lock:
            y = ticket.prefetched.pop() if ticket.prefetched else None
        if y is None:
            y = self._start(ticket, ticket.size, ticket.layout.stride)
        finish_read(ledger, ticket, y)
        return y

    def wait(self, ticket: Ticket, y: torch.Tensor) -> None:
        """Return when `y`, which `prefetch` returned, is valid.

        A read that fails is tried once more; then TransferError is raised.
        """
        self._ledger.catch_up()
        finish_read(self._ledger, ticket, y)

    def free(self, ticket: Ticket) -> None:
        """Nobody will ask for `ticket` again; safe in a finalizer, in any thread, at any time."""
        self._ledger.bury(ticket)

    def reserve(self, nbytes: int, tier: str) -> None:
        """Make sure that `tier` can hold `nbytes` in all; StoreFull otherwise."""
        engine = self._find_engine(tier, "reserve")
        with self._ledger.lock:
            self._ledger.check_open("reserve")
            engine.reserve(nbytes)

    def statistics(self) -> StoreStatistics:
        """The counters now, after everything that is dead has been freed."""
        self._ledger.catch_up()
        names = dict.fromkeys(engine.name for engine in self.engines.values())
        pageable_bytes = self._devices.pageable_bytes
        with self._ledger.lock:
            return self._ledger.counters.snapshot(", ".join(names), pageable_bytes=pageable_bytes)

    def reset_statistics(self) -> None:
        """Set the sums to zero; bytes in flight and in slots stay."""
        self._ledger.catch_up()
        with self._ledger.lock:
            self._ledger.counters.reset()
        self._devices.reset_statistics()

    def close(self) -> None:
        """Finish what is in flight and close the engines; later calls raise StoreClosed."""
        with self._ledger.lock:
            if self._ledger.closed:
                return
            self._ledger.closed = True
        self._devices.close()
        for engine in self.engines.values():
            engine.close()
        self._ledger.catch_up()

    def _find_engine(self, tier: str, subject: str) -> IOEngine:
        engine = self.engines.get(tier)
        if engine is None:
            raise StoreError(
                f"{subject}: the store has no tier {tier!r}, only {sorted(self.engines)}; "
                "give host_budget to have a host tier"
            )
        return engine

    def _start(self, ticket: Ticket, size: Sequence[int], stride: Sequence[int]) -> torch.Tensor:
        y = forward_value(self._ledger, ticket, size, stride, self._keeps_graph)
        if y is not None:
            return y
        device = self._devices.find(ticket.layout.device)
        return start_read(self._ledger, device, ticket, size, stride)
