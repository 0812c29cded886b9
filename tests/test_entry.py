"""Values of calls: what they take of memory, and who else has them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from round_trips import check_empty, fill

from fxoffload.errors import ModifiedError
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.program.entry import Entry, find_owners, sum_resident_bytes
from fxoffload.runtime.store.store import OffloadStore
from fxoffload.schedule import Half
from fxoffload.torch_internals import is_shared, make_version_counter

NBYTES = 100_000
CPU = torch.device("cpu")
FIRST, SECOND, BACKWARD = Half("a", 0, True), Half("a", 1, True), Half("a", 1, False)


@pytest.fixture
def store() -> Iterator[OffloadStore]:
    """One that knows versions, and who else has a tensor."""
    store = OffloadStore(
        {"nvme": MemoryEngine(2**20)},
        max_inflight_bytes=2**20,
        is_shared=is_shared,
        make_counter=make_version_counter,
    )
    yield store
    check_empty(store)
    store.close()


def save(store: OffloadStore, x: torch.Tensor, half: Half) -> Entry:
    """A value of the caller's that has been written."""
    ticket = store.offload(x, "x", "nvme", False)
    store.release(ticket, True)
    return Entry("x", store, ticket, CPU, half)


def test_values_that_share_a_ticket_count_once(store: OffloadStore) -> None:
    """As the caller's memory while a forward that saves them runs, else as what came back."""
    x = fill(NBYTES)
    first, second = save(store, x, FIRST), save(store, x, SECOND)
    both = [first, second]
    assert first.ticket is second.ticket
    assert [sum_resident_bytes(both, half) for half in (FIRST, SECOND, BACKWARD, None)] == [
        NBYTES, NBYTES, 0, 0,
    ]  # fmt: skip
    del x
    assert sum_resident_bytes(both, FIRST) == 0
    y = second.wait(is_measured=True)
    first.passed = y
    assert sum_resident_bytes(both, BACKWARD) == NBYTES
    assert first.wait(is_measured=True) is y, "it was passed on"
    assert sum_resident_bytes(both, BACKWARD) == NBYTES, "one tensor has been handed out twice"
    del y
    assert sum_resident_bytes(both, BACKWARD) == 0
    assert torch.equal(first.wait(is_measured=True), fill(NBYTES)), (
        "it is read for another backward"
    )
    for entry in both:
        store.free(entry.ticket)


def test_what_was_passed_on_is_watched(store: OffloadStore) -> None:
    x = fill(NBYTES)
    entry = save(store, x, FIRST)
    entry.passed = entry.wait(is_measured=True)
    x.add_(1)
    with pytest.raises(ModifiedError):
        entry.wait(is_measured=True)
    store.free(entry.ticket)


def test_a_value_of_no_call_is_read_at_each_prefetch(store: OffloadStore) -> None:
    ticket = store.offload(fill(NBYTES), "x", "nvme", True)
    store.release(ticket, True)
    entry = Entry("x", store, ticket, CPU)
    for _ in range(2):
        entry.start_reading()
    assert len(ticket.prefetches) == 2
    for _ in range(2):
        entry.wait(is_measured=False)
    assert entry.handed is None, "nobody measures the step"
    store.free(ticket)


def test_owners(store: OffloadStore) -> None:
    held, gone = fill(NBYTES), fill(NBYTES, 1)
    ticket = store.offload(fill(8), "own", "nvme", True)
    own = Entry("own", store, ticket, CPU, FIRST)
    store.release(own.ticket, True)
    entries = {
        (0, "held"): save(store, held, FIRST),
        (1, "held"): save(store, held, SECOND),
        (1, "gone"): save(store, gone, SECOND),
        (1, "unasked"): save(store, fill(NBYTES, 2), SECOND),
        (1, "own"): own,
    }
    del gone
    for key in ((0, "held"), (1, "held"), (1, "gone"), (1, "own")):
        entries[key].wait(is_measured=True)
    found = find_owners(entries)
    assert found.shared == (((0, "held"), (1, "held")),)
    assert found.held == {(0, "held"), (1, "held")}
    assert found.let_go == {(1, "gone")}
    del held
    entries[0, "held"].wait(is_measured=True)
    assert find_owners(entries) == found, "the first wait tells"
    later = find_owners({(1, "held"): entries[1, "held"]})
    assert found.update(later).let_go == {(1, "gone")}, "what is not seen stays as it was"
    for entry in entries.values():
        store.free(entry.ticket)
