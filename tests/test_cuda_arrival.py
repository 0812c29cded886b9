"""Device tensors on their way back, piece by piece; test_cuda.py runs a whole store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from simulated_device import CPU, JobEngine, World, install

from fxoffload.runtime.devices.cuda import CudaDevice
from fxoffload.runtime.devices.cuda_arrival import CudaIncoming
from fxoffload.runtime.devices.transfer import Layout
from fxoffload.runtime.engines.ioengine import find_outcome

LAYOUT = Layout((300,), (1,), torch.float32, CPU, 1200, staged=True)


@pytest.fixture
def world() -> World:
    return World(seed=1)


@pytest.fixture
def memory(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaDevice]:
    with install(world, monkeypatch, piece_bytes=512) as device:
        yield device


@pytest.fixture
def engine(world: World) -> JobEngine:
    """Its slot at 0 has a value of 2, in three pieces."""
    engine = JobEngine(world)
    engine.allocate(1536)
    written = torch.full((128,), 2.0).numpy().data.cast("B")
    for offset in (0, 512, 1024):
        engine.write(written, offset).result()
    return engine


def test_it_is_read_in_pieces_and_copied(
    world: World, memory: CudaDevice, engine: JobEngine
) -> None:
    incoming = CudaIncoming(LAYOUT, memory, 512, 512)
    read = incoming.read(engine, 0)
    assert incoming.read_bytes == 1536
    assert read.result() == 1536
    raw = world.alias(incoming.y)
    incoming.finish()
    world.run_all()
    assert raw.eq(2.0).all()
    memory.let_go()
    assert memory.arena.used_bytes == 0


def test_what_has_arrived_is_not_read_again(
    world: World, memory: CudaDevice, engine: JobEngine
) -> None:
    """Its copy may still read the buffer."""
    incoming = CudaIncoming(LAYOUT, memory, 512, 512)
    engine.read_failures = 1
    assert isinstance(find_outcome(incoming.read(engine, 0)), OSError)
    assert incoming.read(engine, 0).result() == incoming.read_bytes == 512
    incoming.finish()
    world.run_all()
    assert world.alias(incoming.y).eq(2.0).all()


def test_a_buffer_is_held_by_the_copies_that_have_started(
    world: World, memory: CudaDevice, engine: JobEngine
) -> None:
    """A value that is given up after a failure, while its other pieces are copied."""
    incoming = CudaIncoming(LAYOUT, memory, 512, 512)
    engine.read_failures = 1
    read = incoming.read(engine, 0)
    while world.jobs:
        world.jobs.pop(0)()
    assert isinstance(find_outcome(read), OSError)
    world.hold()
    incoming.close()
    incoming.close()
    del incoming
    memory.let_go()
    assert memory.arena.used_bytes > 0
    world.run_all()
    memory.let_go()
    assert (memory.arena.used_bytes, world.live_blocks) == (0, 0)
    assert world.errors == []


def test_an_error_of_a_copy_is_raised_by_finish(
    memory: CudaDevice, engine: JobEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no error of the drive; the copy may be queued, so the buffer is not used again."""
    incoming = CudaIncoming(LAYOUT, memory, 512, 512)

    def refuse(*_: Any) -> Any:
        raise RuntimeError("simulated")

    monkeypatch.setattr(memory.streams, "copy_in", refuse)
    assert incoming.read(engine, 0).result() == 1536
    with pytest.raises(RuntimeError, match="simulated"):
        incoming.finish()
    incoming.close()
    memory.let_go(wait=True)
    assert memory.arena.used_bytes > 0
