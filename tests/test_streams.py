"""CudaStreams on a simulated device: each copy behind what must be in front of it, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from simulated_device import Event, World, install

from fxoffload.errors import StoreError
from fxoffload.runtime.devices.streams import CudaStreams

LENGTH = 64


@pytest.fixture(params=range(5))
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


@pytest.fixture
def streams(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaStreams]:
    with install(world, monkeypatch) as device:
        yield device.streams


def make(world: World, number: float) -> torch.Tensor:
    """A tensor that a kernel will have filled with `number`."""
    x = world.empty_strided((LENGTH,), (1,), dtype=torch.float32)
    raw = world.alias(x)
    world.launch(lambda: raw.fill_(number))
    return x


def run_until(world: World, event: object) -> None:
    assert isinstance(event, Event)
    world.run_until(lambda: event.passed)


def test_a_copy_out_comes_behind_what_is_queued(world: World, streams: CudaStreams) -> None:
    x = make(world, 3.0)
    target = torch.zeros(LENGTH)
    (event,) = streams.copy_out(target, x, streams.find_current())
    run_until(world, event)
    assert target.eq(3.0).all()


@pytest.mark.parametrize("late", [0, 1])
def test_a_copy_in_comes_behind_each_of_its_events(
    late: int, world: World, streams: CudaStreams
) -> None:
    y = world.empty_strided((LENGTH,), (1,), dtype=torch.float32)
    source, raw, gate = torch.zeros(LENGTH), world.alias(y), Event(world)
    events: list[Any] = []
    for index in range(2):
        world.current = world.make_stream()
        if index == late:
            world.current.wait_event(gate)
        world.launch(lambda: (source.add_(1.0), raw.fill_(-1.0)))
        events.append(world.current.record_event())
    world.current = world.default_streams[0]
    end = streams.copy_in(y, source, events)
    world.run_all()
    assert not end.query()
    gate.passed = True
    run_until(world, end)
    assert raw.eq(2.0).all()


def test_a_copy_in_does_not_wait_for_what_computes() -> None:
    """Else nothing would be hidden."""
    world = World(seed=1)
    with pytest.MonkeyPatch.context() as patch, install(world, patch) as device:
        y = world.empty_strided((LENGTH,), (1,), dtype=torch.float32)
        never = Event(world)
        world.current.wait_event(never)
        run_until(world, device.streams.copy_in(y, torch.ones(LENGTH), []))
        assert world.alias(y).eq(1.0).all()
        never.passed = True


def test_what_is_queued_behind_a_join_waits(world: World, streams: CudaStreams) -> None:
    x = make(world, 5.0)
    target, seen = torch.zeros(LENGTH), list[float]()
    (event,) = streams.copy_out(target, x, streams.find_current())
    streams.join((event,))
    world.launch(lambda: seen.append(target.min().item()))
    world.run_all()
    assert seen == [5.0]


def test_other_streams_join_too(world: World, streams: CudaStreams) -> None:
    """As that of the memory, where another one is the current one."""
    x = make(world, 5.0)
    target, seen = torch.zeros(LENGTH), list[float]()
    (event,) = streams.copy_out(target, x, streams.find_current())
    home, world.current = world.current, world.make_stream()
    assert streams.join((event,), home) is world.current is streams.find_current()
    with streams.entering(home):  # pyright: ignore[reportArgumentType]
        assert streams.find_current() is home
        world.launch(lambda: seen.append(target.min().item()))
    assert streams.find_current() is not home
    world.run_all()
    assert seen == [5.0]


def test_memory_waits_for_a_reader_on_another_stream(world: World, streams: CudaStreams) -> None:
    x = make(world, 5.0)
    event = streams.mark(streams.find_current())
    reader, gate, seen = world.make_stream(), Event(world), list[float]()
    reader.wait_event(event)  # pyright: ignore[reportArgumentType]
    reader.wait_event(gate)
    world.current, raw = reader, world.alias(x)
    world.launch(lambda: seen.append(raw.min().item()))
    streams.note_reader(x, reader)  # pyright: ignore[reportArgumentType]
    del x
    world.run_all()
    assert world.live_blocks == 1
    gate.passed = True
    world.run_all()
    assert (seen, world.live_blocks) == ([5.0], 0)


def test_all_is_done_on_the_device_of_the_streams(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller's current device, and its streams, may be others."""
    with install(world, monkeypatch):
        streams = CudaStreams(torch.device("cuda", 1))
        stream = world.make_stream(1)
        world.current = stream
        assert streams.find_current() is stream
        y = streams.empty((LENGTH,), (1,), torch.float32)
        block = world._find_block(y.data_ptr())
        assert block is not None
        assert block.stream is stream
        raw = world.alias(y)
        world.device = 1
        world.launch(lambda: raw.fill_(3.0))
        world.device = 0
        target = torch.zeros(LENGTH)
        run_until(world, *streams.copy_out(target, y, streams.find_current()))
        assert target.eq(3.0).all()
        assert world.device == 0
        streams.enter_thread()
        assert world.device == 1


def test_a_capture_of_a_cuda_graph_is_refused(world: World, streams: CudaStreams) -> None:
    """A replay would repeat kernels, and not what the host does in between."""
    world.captures = True
    with pytest.raises(StoreError, match=r"CUDA graph .*captured.*mode=.reduce-overhead"):
        streams.find_current()


def test_a_mark_is_behind_what_is_queued(world: World, streams: CudaStreams) -> None:
    x = make(world, 7.0)
    run_until(world, streams.mark(streams.find_current()))
    assert world.alias(x).eq(7.0).all()


def test_threads_wait_for_copies_out_alone(world: World, streams: CudaStreams) -> None:
    """An event that does not block would have them spin on a core."""
    x = make(world, 1.0)
    host = torch.zeros(LENGTH)
    (out,), back = streams.copy_out(host, x, streams.find_current()), streams.copy_in(x, host, [])
    assert isinstance(out, Event)
    assert isinstance(back, Event)
    assert (out.blocking, back.blocking) == (True, False)
    world.run_all()


def test_host_memory_is_pinned_where_that_is_asked_for(world: World, streams: CudaStreams) -> None:
    for nbytes, pinned in ((100, True), (200, False)):
        memory = streams.empty_host(nbytes, pinned)
        assert (memory.dtype, len(memory)) == (torch.uint8, nbytes)
    assert world.pinned_bytes == [100]


def test_memory_of_the_device_has_the_layout_that_is_asked_for(
    world: World, streams: CudaStreams
) -> None:
    y = streams.empty((4, 3), (1, 4), torch.float64)
    assert (y.shape, y.stride(), y.dtype) == ((4, 3), (1, 4), torch.float64)
    assert world.live_blocks == 1
