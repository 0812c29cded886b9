"""Tickets: when the bytes in memory, and the slot, are no longer needed."""

from __future__ import annotations

import weakref
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flaky_engine import FlakyEngine
from round_trips import fill, offload

from fxoffload.runtime.devices.transfer import Present, find_layout
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.store.store import OffloadStore
from fxoffload.runtime.store.ticket import Prefetch, Read, Ticket


@pytest.mark.parametrize("block", [True, False])
def test_x_is_let_go_when_written_and_released(
    last_store: OffloadStore, flaky: FlakyEngine, block: bool
) -> None:
    flaky.gate.clear()
    x = fill(100_000)
    storage = weakref.ref(x.untyped_storage())
    ticket = offload(last_store, x)
    if not block:
        last_store.release(ticket, block=False)
        assert ticket.outgoing is not None
    flaky.finish()
    if block:
        assert ticket.outgoing is not None
        last_store.release(ticket, block=True)
    assert ticket.outgoing is None
    del x, storage
    last_store.free(ticket)


def make_ticket(**fields: Any) -> Ticket:
    """A value of 100 bytes that has been written to its slot, unless `fields` say otherwise."""
    x = torch.zeros(25)
    defaults: dict[str, Any] = {
        "name": "x", "size": (25,), "nbytes": 100, "tier": "nvme", "engine": MemoryEngine(0),
        "alignment": 512, "layout": find_layout(x), "caller": None, "outgoing": None,
        "slot": 0, "stored": True,
    }  # fmt: skip
    return Ticket(**{**defaults, **fields})


def make_bytes(*, shares_memory: bool = False, stays: bool = False) -> Any:
    """What an Outgoing says of its bytes."""
    return SimpleNamespace(shares_memory=shares_memory, stays=stays)


OPEN: Future[int] = Future()


@pytest.mark.parametrize(
    ("fields", "idle"),
    [
        ({"outgoing": None}, False),  # There is nothing to give back.
        ({"outgoing": make_bytes()}, True),
        ({"outgoing": make_bytes(), "stored": False}, False),
        ({"outgoing": make_bytes(), "write": OPEN}, False),
        ({"outgoing": make_bytes(), "copies": 1}, False),
        # The program may still read what is its own.
        ({"outgoing": make_bytes(shares_memory=True)}, False),
        ({"outgoing": make_bytes(shares_memory=True), "released": True}, True),
        # The bytes are nowhere else.
        ({"outgoing": make_bytes(stays=True), "released": True}, False),
        ({"outgoing": make_bytes(stays=True), "freed": True}, True),
        # Nobody needs them.
        ({"outgoing": make_bytes(), "stored": False, "freed": True}, True),
        ({"outgoing": make_bytes(), "stored": False, "lent": True}, True),
        ({"outgoing": make_bytes(), "freed": True, "copies": 1}, False),
        ({"outgoing": make_bytes(), "freed": True, "write": OPEN}, False),
    ],
)
def test_when_bytes_in_memory_are_idle(fields: dict[str, Any], idle: bool) -> None:
    assert make_ticket(**fields).outgoing_is_idle is idle


def make_prefetch(future: Future[int] | None) -> Prefetch:
    """One whose value comes by a read with that future, or from memory."""
    arrival: Any = Present(torch.zeros(25))
    return Prefetch(arrival, None if future is None else Read(arrival, future))


def end() -> Future[int]:
    future: Future[int] = Future()
    future.set_result(512)
    return future


@pytest.mark.parametrize(
    ("fields", "idle"),
    [
        ({}, False),
        ({"stored": False}, True),  # A write that failed, or bytes that were lent.
        ({"stored": False, "write": OPEN}, False),
        ({"freed": True}, True),
        ({"freed": True, "write": OPEN}, False),
        ({"freed": True, "prefetches": [make_prefetch(end()), make_prefetch(None)]}, True),
        ({"freed": True, "prefetches": [make_prefetch(end()), make_prefetch(OPEN)]}, False),
    ],
)
def test_when_the_slot_is_idle(fields: dict[str, Any], idle: bool) -> None:
    assert make_ticket(**fields).slot_is_idle is idle


def test_bytes_of_the_host_tier() -> None:
    assert make_ticket(tier="host").host_bytes == 100
    assert make_ticket().host_bytes == 0


def test_the_place_is_the_slot_once_there_is_one() -> None:
    engine = MemoryEngine(4096)
    slot = engine.allocate(512)
    assert make_ticket(engine=engine, slot=slot).describe_place() == engine.describe(slot)
    assert make_ticket(engine=engine, slot=None).describe_place() == "memory"
