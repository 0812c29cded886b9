"""Tensors of the caller that several graphs save: one ticket, written once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from round_trips import CAP, check_empty, fetch, fill, offload

from fxoffload.errors import ModifiedError
from fxoffload.runtime.engines.ioengine import IOEngine
from fxoffload.runtime.store.store import OffloadStore
from fxoffload.runtime.store.ticket import Ticket
from fxoffload.torch_internals import is_shared, make_version_counter


@pytest.fixture
def watching(engine: IOEngine) -> Iterator[OffloadStore]:
    """A store that knows the versions of tensors, and who else has them."""
    store = OffloadStore(
        {"nvme": engine},
        max_inflight_bytes=CAP,
        is_shared=is_shared,
        make_counter=make_version_counter,
    )
    yield store
    check_empty(store)
    store.close()


def test_what_two_graphs_save_is_written_once(watching: OffloadStore) -> None:
    x = fill(100_000)
    first, second = (offload(watching, x, name, owned=False) for name in "ab")
    assert first is second
    watching.release(first, block=True)
    watching.release(second, block=True)
    x.data.zero_()  # As what reuses the memory does: no version tells of it.
    del x
    done = watching.statistics()
    assert done.offloads == 1
    assert done.written_bytes == done.deduplicated_bytes == 100_000
    assert torch.equal(fetch(watching, second), fill(100_000))
    watching.free(second)
    assert watching.statistics().live_bytes == 100_000, "the first graph asks for it yet"
    assert torch.equal(fetch(watching, first), fill(100_000))
    watching.free(first)


def test_what_was_changed_in_between_is_another_value(watching: OffloadStore) -> None:
    x = fill(100_000)
    first = offload(watching, x, "a", owned=False)
    watching.release(first, block=True)
    x.add_(1)
    second = offload(watching, x, "b", owned=False)
    watching.release(second, block=True)
    assert torch.equal(fetch(watching, second), fill(100_000) + 1)
    with pytest.raises(ModifiedError):
        watching.wait(first)
    part = offload(watching, x[1:], "c", owned=False)
    assert part is not second, "another part of the same memory"
    watching.release(part, block=True)
    assert watching.statistics().deduplicated_bytes == 0
    for ticket in (first, second, part):
        watching.free(ticket)


def test_what_two_graphs_keep_is_handed_back_to_both(watching: OffloadStore) -> None:
    x = fill(100_000)
    first, second = (watching.keep(x, name, "nvme", False) for name in "ab")
    assert first is second
    for each in (first, second):
        y = watching.wait(each)
        assert y.data_ptr() == x.data_ptr()
        watching.free(each)
    assert watching.statistics().kept_bytes == 100_000


def test_what_two_graphs_keep_moves_once_after_all(watching: OffloadStore) -> None:
    x = fill(100_000)
    kept = watching.keep(x, "a", "nvme", False)
    assert watching.keep(x, "b", "nvme", False) is kept
    del x
    moved: list[Ticket] = []
    for _ in range(2):
        ticket = watching.move_kept(kept)
        assert ticket is not None
        watching.free(kept)
        moved.append(ticket)
    assert moved[0] is moved[1]
    assert watching.statistics().written_bytes == 100_000
    for ticket in moved:
        assert torch.equal(fetch(watching, ticket), fill(100_000))
        watching.free(ticket)


def test_who_holds_the_memory(watching: OffloadStore) -> None:
    x = fill(100_000)
    own, kept = offload(watching, fill(100_000)), watching.keep(x, "b", "nvme", False)
    assert watching.is_held(own) is None
    assert watching.is_held(kept) is True
    sent = offload(watching, x[1:], "c", owned=False)
    assert watching.is_held(sent) is None, "the store itself may hold it"
    watching.release(sent, block=True)
    assert watching.is_held(sent) is True
    del x
    assert watching.is_held(kept) is False
    watching.free(kept)
    assert watching.is_held(sent) is False
    watching.release(own, block=True)
    for ticket in (own, sent):
        watching.free(ticket)


def test_what_nobody_holds_is_not_found(watching: OffloadStore) -> None:
    x = fill(100_000)
    first = offload(watching, x, owned=False)
    watching.release(first, block=True)
    watching.free(first)
    second = offload(watching, x, owned=False)
    assert second is not first
    watching.release(second, block=True)
    assert torch.equal(fetch(watching, second), x)
    watching.free(second)


def test_what_the_last_backward_took_is_not_cancelled_for_others(watching: OffloadStore) -> None:
    """Two graphs keep one tensor: the first of two last backwards leaves it to the other."""
    x = fill(100_000)
    watching._keeps_graph = lambda: False
    first, second = (watching.keep(x, name, "nvme", False) for name in "ab")
    assert watching.wait(first).data_ptr() == x.data_ptr()
    watching.free(first)
    assert watching.wait(second).data_ptr() == x.data_ptr()
    watching.free(second)
    sent = [offload(watching, x, name, owned=False) for name in "ab"]
    for ticket in sent:
        watching.release(ticket, block=True)
    for ticket in sent:
        assert torch.equal(watching.wait(ticket), x)
        watching.free(ticket)
