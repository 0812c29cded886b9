"""Values that tests send through a store and back."""

from __future__ import annotations

import time

import torch

from fxoffload.runtime.store.store import OffloadStore
from fxoffload.runtime.store.ticket import Ticket

CAP = 2**30  # On bytes in flight, for tests that never come to it.


def check_empty(store: OffloadStore) -> None:
    """Nothing is in flight, and no slot is held, once the threads have ended what they do."""
    deadline = time.monotonic() + 30
    while True:
        record = store.statistics()
        if record.inflight_bytes == record.live_bytes == 0:
            return
        assert time.monotonic() < deadline, record
        time.sleep(0.001)  # A transfer of a freed ticket ends in a worker thread.


def fill(nbytes: int, seed: int = 0) -> torch.Tensor:
    """Random bytes, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=generator)


def offload(store: OffloadStore, x: torch.Tensor, name: str = "x", owned: bool = True) -> Ticket:
    return store.offload(x, name, "nvme", owned)


def fetch(store: OffloadStore, ticket: Ticket) -> torch.Tensor:
    """The value back."""
    store.prefetch(ticket)
    return store.wait(ticket)


def round_trip(store: OffloadStore, x: torch.Tensor) -> torch.Tensor:
    """`x` as it comes back from its slot."""
    ticket = offload(store, x)
    store.release(ticket, block=True)
    wait_stored(ticket)
    y = fetch(store, ticket)
    assert y.storage_offset() == 0
    store.free(ticket)
    return y


def wait_stored(ticket: Ticket) -> None:
    """A staged value stays in memory until its write has ended, which nobody waits for."""
    deadline = time.monotonic() + 30
    while ticket.write is not None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
