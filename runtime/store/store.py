"""The asynchronous store: writes values out, reads them back, forwards those still in memory.

    offload    allocates a slot and starts the write to it
    release    frees the memory of x, at once or when the write has ended
    prefetch   forwards the value if it is still in memory, else starts to read the slot
    wait       returns the value
    free       frees the slot once no transfer uses it

`fxoffload.runtime.store.ledger` has the rules of locking.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from fxoffload.runtime.devices.devices import Devices
from fxoffload.runtime.engines.ioengine import IOEngine
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.store.callers import CallersTensor
from fxoffload.runtime.store.counters import StoreStatistics, reset_sums
from fxoffload.runtime.store.ledger import Ledger
from fxoffload.runtime.store.loading import finish_prefetch, start_prefetch
from fxoffload.runtime.store.storing import find_engine, keep_value, send_value
from fxoffload.runtime.store.ticket import Ticket


class OffloadStore:
    """Moves values to engines and back; any thread may call any method.

    engines: the engine of each tier, which the store owns. A value that finds the "host" tier full
    goes to "nvme". max_inflight_bytes: the cap on bytes being written, None for that of
    find_inflight_cap. At the cap an offload waits; a value larger than it is written alone.
    keeps_graph(): whether another backward may follow the one that runs; if not, the store returns
    the offloaded tensor itself instead of a copy. is_shared(x): whether another tensor holds the
    memory of `x`. make_counter(x): a tensor without memory that shares the version counter of `x`;
    None if changes in place need no detection.
    """

    def __init__(
        self,
        engines: Mapping[str, IOEngine],
        *,
        max_inflight_bytes: int | None = None,
        keeps_graph: Callable[[], bool] = lambda: True,
        is_shared: Callable[[torch.Tensor], bool] = lambda _: False,
        make_counter: Callable[[torch.Tensor], torch.Tensor | None] = lambda _: None,
    ) -> None:
        self.engines = dict(engines)
        # All tiers use the largest alignment, so a value prepared for one tier fits another.
        self._alignment = max(engine.alignment for engine in self.engines.values())
        self._keeps_graph = keeps_graph
        self._is_shared = is_shared
        self._make_counter = make_counter
        self._ledger = Ledger(max_inflight_bytes)
        host = [engine for engine in self.engines.values() if isinstance(engine, MemoryEngine)]
        # What is in flight to drives takes staging buffers, the host tier consists of them.
        self._devices = Devices(sum(it.capacity_bytes for it in host), max_inflight_bytes)

    @property
    def closed(self) -> bool:
        """Whether close was called."""
        return self._ledger.closed

    @property
    def host_bytes(self) -> int:
        """The size of the host tier; 0 without one."""
        host = self.engines.get("host")
        return host.capacity_bytes if isinstance(host, MemoryEngine) else 0

    def add_host_tier(self, nbytes: int) -> None:
        """Give the store a host tier of `nbytes`, unless it has one; before a value goes there."""
        with self._ledger.lock:
            self._ledger.check_open("host tier")
            if "host" not in self.engines:
                self.engines = {**self.engines, "host": MemoryEngine(nbytes)}
                self._devices.host_bytes += nbytes

    @property
    def exposed_seconds(self) -> float:
        """As in `statistics`, but without freeing anything first."""
        return self._ledger.counters.exposed_seconds

    def offload(
        self,
        x: torch.Tensor,
        name: str,
        tier: str,
        owned: bool,
        duplicate_bytes: int = 0,
    ) -> Ticket:
        """Start to copy `x` out; `x` must not change before `release`.

        owned: False if `x` belongs to the caller; then it is never returned itself. If another
        offload of the same tensor, unchanged since, is in progress, both get one ticket.
        """
        self._ledger.catch_up()
        if owned:
            return self._send(x, name, tier, None, duplicate_bytes)
        found = self._find_shared(x, kept=False)
        if found is not None:
            return found
        caller = CallersTensor(x, self._make_counter(x))
        return self._send(x, name, tier, caller, duplicate_bytes)

    def keep(self, x: torch.Tensor, name: str, tier: str, owned: bool) -> Ticket:
        """A ticket for `x`, which stays where it is; `x` must not change before `release`.

        owned: as in `offload`.
        """
        self._ledger.catch_up()
        found = None if owned else self._find_shared(x, kept=True)
        if found is not None:
            return found
        caller = None if owned else CallersTensor(x, self._make_counter(x))
        order = self._devices.find(x.device).find_order()
        engine = find_engine(self.engines, tier, name)
        return keep_value(self._ledger, x, name, tier, engine, self._alignment, caller, order)

    def move_kept(self, ticket: Ticket) -> Ticket | None:
        """Move the value that `ticket` keeps; return its new ticket, or None if it keeps nothing.

        Each holder of `ticket` calls this and frees `ticket`; all get the same new ticket. The call
        returns when the value has been written.
        """
        with self._ledger.lock:
            kept, ticket.kept = ticket.kept, None
            if ticket.successor is not None:
                ticket.successor.holders += 1
        if kept is None:
            return ticket.successor
        if ticket.caller is not None:
            ticket.caller.check_unchanged(ticket.name)
        with ticket.order:
            moved = ticket.successor = self._send(kept, ticket.name, ticket.tier, ticket.caller)
            del kept
            self.release(moved, block=False)
            self.settle(moved)
        return moved

    def is_held(self, ticket: Ticket) -> bool | None:
        """Whether the program still holds the memory of a tensor that belongs to the caller.

        None for other values, and while that is unknown.
        """
        caller = ticket.caller
        if caller is None:
            return None
        with self._ledger.lock:
            kept, outgoing = ticket.kept, ticket.outgoing
        if kept is not None:
            return self._is_shared(kept)
        # While a write reads the tensor's own memory, the store holds it, too.
        return None if outgoing is not None and outgoing.shares_memory else caller.alive

    def settle(self, ticket: Ticket) -> None:
        """Wait until the memory of a value that was released without `block` is free.

        A value whose write has failed stays in memory.
        """
        ledger = self._ledger
        with ledger.lock:
            ledger.check_open(ticket.name)
            outgoing, write = ticket.outgoing, ticket.write
        if outgoing is not None and not outgoing.settle() and write is not None:
            ledger.wait_written(ticket, write)
        ledger.catch_up()

    def release(self, ticket: Ticket, block: bool) -> None:
        """Free the memory of x, which the program has finished reading.

        block: whether the memory may be overwritten when this returns; if not, the store frees x
        when it has been written. A value whose write has failed stays in memory: as a copy with
        `block`, else as x itself.
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
        outgoing.release(block)
        if block and outgoing.shares_memory:
            if write is not None:
                ledger.wait_written(ticket, write)
            with ledger.lock:
                if ticket.outgoing is not None:
                    ticket.outgoing.keep_copy()
            ledger.catch_up()

    def prefetch(self, ticket: Ticket) -> None:
        """Start to load the value, which `wait` returns.

        Raises ModifiedError for a tensor of the caller that was changed in place.
        """
        self._ledger.catch_up()
        start_prefetch(self._ledger, self._devices, ticket, self._keeps_graph)

    def wait(self, ticket: Ticket) -> torch.Tensor:
        """Return the value that the latest `prefetch` started to load; without one, load it now.

        The result has the layout of the offloaded tensor, in memory of its own; expanded dimensions
        stay expanded. For a tensor of the caller that was kept, the result is that tensor; this
        raises ModifiedError as `prefetch` does. A failed read is retried once; then this raises
        TransferError.
        """
        ledger = self._ledger
        ledger.catch_up()
        with ledger.lock:
            ledger.check_open(ticket.name)
            started = (each for each in reversed(ticket.prefetches) if not each.taken)
            prefetch = next(started, None)
            if prefetch is not None:
                prefetch.taken = True
        if prefetch is None:
            prefetch = start_prefetch(ledger, self._devices, ticket, self._keeps_graph, taken=True)
        if prefetch.shared and ticket.caller is not None:
            ticket.caller.check_unchanged(ticket.name)
        return finish_prefetch(ledger, ticket, prefetch)

    def free(self, ticket: Ticket) -> None:
        """Free `ticket`, which must not be used again; safe in a finalizer, in any thread."""
        self._ledger.bury(ticket)

    def reserve(self, nbytes: int, tier: str) -> None:
        """Make sure that `tier` can hold `nbytes` in all; raise StoreFull otherwise."""
        with self._ledger.lock:
            self._ledger.check_open("reserve")
            find_engine(self.engines, tier, "reserve").reserve(nbytes)

    def statistics(self) -> StoreStatistics:
        """A copy of the counters, after queued tickets have been freed."""
        self._devices.let_go()
        self._ledger.catch_up()
        names = ", ".join(dict.fromkeys(engine.name for engine in self.engines.values()))
        pageable_bytes = self._devices.pageable_bytes
        with self._ledger.lock:
            return replace(self._ledger.counters, pageable_bytes=pageable_bytes, ioengine=names)

    def reset_statistics(self) -> None:
        """Set the sums to zero; bytes in flight and in slots stay."""
        self._ledger.catch_up()
        with self._ledger.lock:
            reset_sums(self._ledger.counters)
        self._devices.reset_statistics()

    def close(self) -> None:
        """Finish the transfers in flight and close the engines; later calls raise StoreClosed."""
        if not self._ledger.close():
            return
        self._devices.close()
        for engine in self.engines.values():
            engine.close()
        self._ledger.catch_up()

    def pause_reads(self) -> None:
        """Before a fork: start no read until `resume_reads`, and wait for those in progress."""
        self._ledger.pause_reads()

    def resume_reads(self) -> None:
        """After a fork, in the parent: allow reads again."""
        self._ledger.resume_reads()

    def abandon(self) -> None:
        """In a forked child: close the parent's files, without waiting for its threads."""
        for engine in self.engines.values():
            engine.abandon()

    def _find_shared(self, x: torch.Tensor, *, kept: bool) -> Ticket | None:
        with self._ledger.lock:
            found = self._ledger.shared.find(x, kept=kept)
            if found is not None and not kept:
                self._ledger.counters.deduplicated_bytes += found.nbytes
            return found

    def _send(
        self,
        x: torch.Tensor,
        name: str,
        tier: str,
        caller: CallersTensor | None,
        duplicate_bytes: int = 0,
    ) -> Ticket:
        return send_value(
            self._ledger,
            self._devices.find(x.device),
            x,
            name,
            tier=tier,
            engine=find_engine(self.engines, tier, name),
            spare=self.engines.get("nvme"),
            alignment=self._alignment,
            caller=caller,
            duplicate_bytes=duplicate_bytes,
        )
