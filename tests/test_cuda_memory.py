"""Holds: memory that copies use is given back once all of their events have passed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from simulated_device import Event, World, install

from fxoffload.runtime.devices.cuda import CudaDevice
from fxoffload.runtime.devices.cuda_deferred import HostWrite
from fxoffload.runtime.devices.cuda_memory import MOST_WAITING, Hold


@pytest.fixture
def world() -> World:
    world = World(seed=1)
    world.hold()
    return world


@pytest.fixture
def memory(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaDevice]:
    with install(world, monkeypatch) as device:
        yield device


def hold_all(memory: CudaDevice, *events: Event) -> Hold:
    """A hold of a buffer and of a tensor behind `events`."""
    hold = Hold(events, memory.take(4096), (torch.ones(1),))  # pyright: ignore[reportArgumentType]
    memory.hold(hold)
    return hold


def test_a_buffer_is_reused_when_the_last_event_has_passed(
    world: World, memory: CudaDevice
) -> None:
    events = Event(world), Event(world)
    hold = hold_all(memory, *events)
    for passed in range(2):
        memory.let_go()
        assert (memory.arena.used_bytes, len(hold.tensors)) == (4096, 1)
        events[passed].passed = True
    memory.let_go()
    assert (memory.arena.used_bytes, hold.tensors) == (0, ())


def test_a_buffer_without_events_is_reused_at_once(memory: CudaDevice) -> None:
    hold = hold_all(memory)
    assert hold.buffer is not None
    address = hold.buffer.tensor.data_ptr()
    assert memory.take(4096).tensor.data_ptr() == address


def test_a_host_that_is_ahead_asks_for_few_events(
    world: World, memory: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And finds those that passed, though others before them did not."""
    asked: list[Event] = []
    monkeypatch.setattr(Event, "query", lambda event: asked.append(event) or event.passed)
    events = [Event(world) for _ in range(100)]
    holds = [hold_all(memory, event) for event in events]
    asked.clear()
    memory.let_go()
    assert asked == events[:MOST_WAITING]
    for event in events[1:50]:
        event.passed = True
    memory.let_go()
    assert [bool(hold.tensors) for hold in holds] == [True] + [False] * 49 + [True] * 50
    events[0].passed = True
    memory.let_go()
    assert not holds[0].tensors


def test_copies_of_the_other_direction_hold_nothing_up(world: World, memory: CudaDevice) -> None:
    for _ in range(2 * MOST_WAITING):
        hold_all(memory, Event(world))
    incoming = Hold([Event(world, passed=True)], tensors=(torch.ones(1),))  # pyright: ignore
    memory.hold(incoming, incoming=True)
    memory.let_go()
    assert not incoming.tensors


def test_an_error_of_an_event_loses_no_hold(
    world: World, memory: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    holds = [hold_all(memory, Event(world)) for _ in range(3)]

    def refuse(event: Event) -> bool:
        if event is holds[1].events[0]:
            raise RuntimeError("simulated")
        return False

    monkeypatch.setattr(Event, "query", refuse)
    with pytest.raises(RuntimeError, match="simulated"):
        memory.let_go()
    assert list(memory._holds[0]) == holds


def test_who_waits_waits_for_every_event(world: World, memory: CudaDevice) -> None:
    events = [world.make_stream().record_event() for _ in range(2)]
    hold_all(memory, *events)
    memory.let_go(wait=True)
    assert [event.passed for event in events] == [True, True]
    assert memory.arena.used_bytes == 0


def test_writes_to_the_host_tier_end_in_their_order(world: World, memory: CudaDevice) -> None:
    events = Event(world), Event(world)
    writes = [HostWrite(event, 5) for event in events]  # pyright: ignore[reportArgumentType]
    memory.host_writes.extend(writes)
    memory.let_go()
    assert list(memory.host_writes) == writes
    events[0].passed = True
    memory.let_go()
    assert list(memory.host_writes) == writes[1:]
    events[1].passed = True
    memory.let_go()
    assert not memory.host_writes
