"""CUDA transfers on simulated streams: work queues up and runs only when something waits for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator

import pytest
import torch

from fxoffload.runtime.buffers import span_tensor
from fxoffload.runtime.cuda import CudaDevice, CudaStreams, Event
from fxoffload.runtime.memory import MemoryEngine
from fxoffload.runtime.store import OffloadStore

CPU = torch.device("cpu")


class FakeStream:
    # One for all streams: they wait for each other.
    running = threading.RLock()

    def __init__(self) -> None:
        self.work: deque[Callable[[], object]] = deque()

    def run(self) -> None:
        with self.running:
            while self.work:
                self.work.popleft()()


class FakeEvent:
    """Behind what its stream had to do when the event was made."""

    def __init__(self, stream: FakeStream) -> None:
        self.passed = False
        self.stream = stream
        stream.work.append(self.note)

    def note(self) -> None:
        self.passed = True

    def query(self) -> bool:
        return self.passed

    def synchronize(self) -> None:
        if not self.passed:
            self.stream.run()


class FakeStreams:
    """Two queues in place of CUDA's; `current` runs when told to, `side` when an event is awaited.

    Copies read their source when they run, so that a missing order shows as wrong values.
    """

    device = CPU

    def __init__(self) -> None:
        self.current, self.side = FakeStream(), FakeStream()

    def copy_aside(self, target: torch.Tensor, source: torch.Tensor) -> Event:
        self.side.work.append(self.current.run)
        self.side.work.append(lambda: target.copy_(source))
        return FakeEvent(self.side)

    def copy_here(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self.current.work.append(lambda: target.copy_(source))

    def mark(self) -> Event:
        return FakeEvent(self.current)

    def join(self, event: Event) -> None:
        self.current.work.append(event.synchronize)


@pytest.fixture
def streams() -> FakeStreams:
    return FakeStreams()


@pytest.fixture
def device(streams: FakeStreams) -> CudaDevice:
    return CudaDevice(streams)


@pytest.fixture
def store(device: CudaDevice) -> Iterator[OffloadStore]:
    store = OffloadStore({"nvme": MemoryEngine(2**26)}, max_inflight_bytes=2**26)
    store._devices._found[CPU] = device
    yield store
    store.close()
    assert store.statistics().live_bytes == 0


@pytest.mark.parametrize("forwarded", [False, True])
@pytest.mark.parametrize("layout", ["plain", "transposed"])
def test_values_come_back_in_stream_order(
    store: OffloadStore, streams: FakeStreams, layout: str, forwarded: bool
) -> None:
    x = torch.zeros(300, 200)
    x = x.t() if layout == "transposed" else x
    streams.current.work.append(lambda: x.fill_(7))
    ticket = store.offload(x, "x", "nvme", True)
    if not forwarded:
        write = ticket.write
        assert write is not None
        assert write.result() > 0
    store.release(ticket, block=True)
    # Whatever reuses the memory of x comes behind release on the current stream.
    streams.current.work.append(lambda: x.fill_(9))
    y = store.prefetch(ticket, x.shape, x.stride(), x.dtype, CPU)
    store.wait(ticket, y)
    streams.current.run()
    assert torch.equal(y, torch.full_like(x, 7))
    store.free(ticket)


def test_release_does_not_wait_and_lets_go_of_x(store: OffloadStore, streams: FakeStreams) -> None:
    x = torch.ones(100_000)
    ticket = store.offload(x, "x", "nvme", True)
    store.release(ticket, block=True)
    assert store.statistics().exposed_seconds == 0
    store.free(ticket)


def test_a_staging_buffer_is_reused_only_behind_its_last_copy(device: CudaDevice) -> None:
    streams = device.streams
    assert isinstance(streams, FakeStreams)
    x = torch.ones(10_000)
    outgoing = device.send(x, 512)
    outgoing.release()
    outgoing.forward(torch.empty(10_000))
    outgoing.close()
    held = device.take(outgoing.slot_bytes)
    assert [buffer is held for _, buffer in device._retired] == [False]
    streams.current.run()
    assert device.take(outgoing.slot_bytes) is not held
    assert not device._retired


def test_an_incoming_value_holds_its_buffer_until_it_was_copied(device: CudaDevice) -> None:
    streams = device.streams
    assert isinstance(streams, FakeStreams)
    x = torch.randn(5000)
    layout = device.send(x, 1).layout
    incoming = device.receive(layout, x.shape, x.stride(), 1)
    span = torch.frombuffer(incoming.view, dtype=torch.uint8)
    span.copy_(span_tensor(x))
    incoming.finish()
    assert len(device._retired) == 1
    streams.current.run()
    assert torch.equal(incoming.y, x)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_round_trip_on_cuda() -> None:
    store = OffloadStore({"nvme": MemoryEngine(2**28)}, max_inflight_bytes=2**28)
    store._devices._found[torch.device("cuda", 0)] = CudaDevice(
        CudaStreams(torch.device("cuda", 0))
    )
    for seed in range(10):
        # Every other one has gaps: private copies are made by kernels that nothing simulates.
        x = torch.full((1_000_000,), float(seed), device="cuda")[:: 1 + seed % 2]
        expected = x.clone()
        ticket = store.offload(x, "x", "nvme", True)
        store.release(ticket, block=True)
        x.zero_()
        y = store.prefetch(ticket, x.shape, x.stride(), x.dtype, x.device)
        store.wait(ticket, y)
        assert torch.equal(y, expected)
        store.free(ticket)
    store.close()
