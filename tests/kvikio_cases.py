"""Tests of the kvikio engine with the real library.

test_kvikio_engine.py runs this file if a CUDA driver can be loaded.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kvikio
import kvikio.defaults
import numpy as np
import pytest
import torch
from engine_contract import EngineContract, make_view
from torch import nn

import fxoffload
from fxoffload.config import IOEngineName, OffloadConfig
from fxoffload.runtime.engines import kvikio_engine, spill_file
from fxoffload.runtime.engines.kvikio_engine import LANE_TASKS, KvikioEngine, Lane, find_obstacle
from fxoffload.runtime.engines.posix import PosixEngine
from fxoffload.runtime.engines.spill_file import SpillFile
from fxoffload.runtime.measurement import choice
from fxoffload.runtime.measurement.bandwidth import Bandwidth
from fxoffload.runtime.measurement.choice import choose_engine, open_engine
from fxoffload.runtime.store.store import OffloadStore
from fxoffload.runtime.stores import close_stores
from fxoffload.sizes import MIB


@pytest.fixture
def engine(spill_directory: Path) -> Iterator[KvikioEngine]:
    engine = KvikioEngine([SpillFile(spill_directory)])
    yield engine
    engine.close()


class TestContract(EngineContract):
    pass


def test_there_is_no_obstacle() -> None:
    assert find_obstacle() is None


def test_direct_both_ways_whatever_the_settings(engine: KvikioEngine) -> None:
    assert engine.name == "kvikio direct"
    assert engine.alignment == os.sysconf("SC_PAGE_SIZE")
    fd = engine._handles[0].fileno()
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
    view = make_view(20 * MIB, seed=1)
    offset = engine.allocate(len(view))
    for reads, writes in ((False, True), (False, False), (True, True)):
        with kvikio.defaults.set({"auto_direct_io_read": reads, "auto_direct_io_write": writes}):
            engine.write(view, offset).result()
            back = make_view(len(view))
            engine.read(back, offset).result()
        assert back == view
        cached, pages = kvikio.get_page_cache_info(fd, offset, len(view))
        assert pages == len(view) // os.sysconf("SC_PAGE_SIZE")
        assert cached == 0


def test_buffered_says_so(spill_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill_file, "_enable_direct", lambda fd: None)
    with pytest.warns(RuntimeWarning, match="refuses direct I/O"):
        file = SpillFile(spill_directory)
    engine = KvikioEngine([file])
    assert (engine.name, engine.alignment) == ("kvikio buffered", 1)
    view = make_view(3 * MIB + 1, seed=1)[1:]
    offset = engine.allocate(len(view))
    assert engine.write(view, offset).result() == len(view)
    back = make_view(len(view))
    assert engine.read(back, offset).result() == len(view)
    assert back == view
    engine.close()


def test_settings_of_the_user_stay(spill_directory: Path) -> None:
    kvikio.defaults.set("num_threads", 1)
    before = {key: kvikio.defaults.get(key) for key in ("task_size", "auto_direct_io_read")}
    engine = KvikioEngine([SpillFile(spill_directory), SpillFile(spill_directory)])
    assert kvikio.defaults.get("num_threads") == 4 * LANE_TASKS
    engine.close()
    kvikio.defaults.set("num_threads", 4 * LANE_TASKS + 1)
    KvikioEngine([SpillFile(spill_directory)]).close()
    assert kvikio.defaults.get("num_threads") == 4 * LANE_TASKS + 1
    assert {key: kvikio.defaults.get(key) for key in before} == before


def test_reading_behind_the_end_is_an_error(engine: KvikioEngine) -> None:
    with pytest.raises(OSError, match="EOF") as caught:
        engine.read(make_view(MIB), 2**40).result()
    assert caught.value.errno == errno.EIO


def test_errors_of_the_file_come_out_of_the_future(engine: KvikioEngine) -> None:
    offset = engine.allocate(MIB)
    engine._handles[0].close()
    for future in (engine.write(make_view(MIB), offset), engine.read(make_view(MIB), offset)):
        with pytest.raises(OSError, match="kvikio"):
            future.result()


def test_unaligned_memory_is_refused_by_direct_reads(engine: KvikioEngine) -> None:
    offset = engine.allocate(MIB)
    engine.write(make_view(MIB), offset).result()
    with pytest.raises(OSError, match="Invalid argument") as caught:
        engine.read(make_view(MIB + 1)[1:], offset).result()
    assert caught.value.errno == errno.EINVAL


class Started:
    """KvikIO's future of a transfer that ends when the gate opens."""

    def __init__(self, outcome: int | Exception, gate: threading.Event | None = None) -> None:
        self.outcome, self.gate = outcome, gate

    def get(self) -> int:
        assert self.gate is None or self.gate.wait(30)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


Call = Callable[..., Any]


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def make_lane(gate: threading.Event) -> Iterator[Callable[[Call], Lane]]:
    lanes: list[Lane] = []

    def make(call: Call) -> Lane:
        lanes.append(Lane(call, "write"))
        return lanes[-1]

    yield make
    gate.set()  # What waits for it ends before the lanes do.
    for lane in lanes:
        lane.close()


@pytest.mark.parametrize("moved", [0, MIB - 1, MIB + 1])
def test_a_wrong_count_is_an_error(make_lane: Callable[[Call], Lane], moved: int) -> None:
    lane = make_lane(lambda *_, **__: Started(moved))
    with pytest.raises(OSError, match=f"short write: {moved} of {MIB} bytes") as caught:
        lane.submit(make_view(MIB), 0).result()
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (RuntimeError(f"POSIX error on pwrite: {os.strerror(errno.ENOSPC)}"), errno.ENOSPC),
        (RuntimeError("cuFile error: something else"), errno.EIO),
        (MemoryError("std::bad_alloc"), errno.EIO),
        (OSError(errno.EDQUOT, "quota"), errno.EDQUOT),
    ],
)
@pytest.mark.parametrize("at_start", [True, False])
def test_errors_become_os_errors(
    make_lane: Callable[[Call], Lane], error: Exception, number: int, at_start: bool
) -> None:
    def call(*_: object, **__: object) -> Started:
        if at_start:
            raise error
        return Started(error)

    lane = make_lane(call)
    for _ in range(LANE_TASKS + 1):  # A failed one makes room like any other.
        with pytest.raises(OSError, match=str(error).split()[-1]) as caught:
            lane.submit(make_view(MIB), 0).result()
        assert caught.value.errno == number


def test_only_what_was_not_started_is_cancelled(
    make_lane: Callable[[Call], Lane], gate: threading.Event
) -> None:
    positions: list[int] = []

    def call(view: memoryview, nbytes: int, position: int, task_size: int) -> Started:
        positions.append(position)
        return Started(nbytes, gate)

    lane = make_lane(call)
    room = LANE_TASKS - kvikio_engine.TRANSFER_TASKS + 1
    started = [lane.submit(make_view(MIB), index) for index in range(room)]
    array = np.zeros(MIB, np.uint8)
    died = weakref.ref(array)
    queued = lane.submit(memoryview(array), 100)
    last = lane.submit(make_view(MIB), 101)
    del array
    assert positions == list(range(room))
    assert not any(future.cancel() for future in started)
    assert died() is not None
    assert queued.cancel()
    assert died() is None
    gate.set()
    assert last.result(30) == MIB
    assert positions == [*range(room), 101]
    assert [future.result() for future in started] == [MIB] * room


def test_tasks_of_a_transfer_are_few_and_whole(make_lane: Callable[[Call], Lane]) -> None:
    tasks: list[tuple[int, int]] = []

    def call(view: memoryview, nbytes: int, position: int, task_size: int) -> Started:
        tasks.append((nbytes, task_size))
        return Started(nbytes)

    lane = make_lane(call)
    sizes = [1, 4096, 16 * MIB, 16 * MIB + 4096, 200 * MIB + 8192]
    for nbytes in sizes:
        assert lane.submit(make_view(nbytes), 0).result() == nbytes
    for nbytes, task_size in tasks:
        count = -(-nbytes // task_size)
        assert task_size % 4096 == 0
        assert count == min(4, -(-nbytes // (16 * MIB)))


def test_a_stalled_lane_holds_up_no_other(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch, gate: threading.Event
) -> None:
    engine = KvikioEngine([SpillFile(spill_directory), SpillFile(spill_directory)])
    monkeypatch.setattr(
        engine._writers[0], "_call", lambda view, nbytes, *_, **__: Started(nbytes, gate)
    )
    first, second = engine.allocate(MIB), engine.allocate(MIB)
    stalled = [engine.write(make_view(MIB), first) for _ in range(20)]
    assert engine.write(make_view(MIB), second).result(30) == MIB
    assert engine.read(make_view(MIB), first).result(30) == MIB
    assert not any(future.done() for future in stalled)
    # New slots go to the file that moves.
    assert [engine.allocate(MIB) >> 48 for _ in range(3)] == [1, 1, 1]
    gate.set()
    engine.close()
    assert [future.result() for future in stalled] == [MIB] * 20


def test_nothing_is_left_behind(spill_directory: Path) -> None:
    def list_own() -> set[str]:
        links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
        return {os.readlink(link) for link in links if os.path.lexists(link)}

    before, threads = list_own(), set(threading.enumerate())
    engine = KvikioEngine([SpillFile(spill_directory)])
    offset = engine.allocate(MIB)
    engine.write(make_view(MIB), offset).result()
    engine.read(make_view(MIB), offset).result()
    ours = set(threading.enumerate()) - threads
    assert {thread.name.rpartition("_")[0] for thread in ours} == {
        "fxoffload-kvikio-write",
        "fxoffload-kvikio-read",
    }
    assert any(str(spill_directory) in name for name in list_own())
    engine.close()
    engine.close()
    assert not any(thread.is_alive() for thread in ours)
    assert list_own() <= before
    assert list(spill_directory.iterdir()) == []


@pytest.mark.parametrize("faster", ["posix", "kvikio"])
def test_auto_takes_the_faster_and_says_so(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch, faster: str
) -> None:
    def measure(engine: PosixEngine | KvikioEngine) -> Bandwidth:
        speed = 4e9 if engine.name.split()[0] == faster else 2e9
        return Bandwidth(speed, speed)

    monkeypatch.setattr(choice, "measure_bandwidth", measure)
    monkeypatch.setenv("XDG_CACHE_HOME", str(spill_directory))
    chosen = choose_engine(config := OffloadConfig(directory=spill_directory))
    speeds = {"posix": "1e+09", "kvikio": "1e+09", faster: "2e+09"}
    told = f"there and back: kvikio {speeds['kvikio']}, posix {speeds['posix']}"
    assert str(chosen).startswith(f"{faster}: ")
    assert told in chosen.reason
    assert chosen.bandwidth == (4e9, 4e9)
    engine = open_engine(config)
    assert engine.name == f"{faster} direct"
    engine.close()


@pytest.mark.parametrize("name", ["kvikio", "auto"])
def test_a_real_probe(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch, name: IOEngineName
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(spill_directory))
    config = OffloadConfig(directory=spill_directory, ioengine=name)
    chosen = choose_engine(config)
    assert min(chosen.bandwidth) > 0
    assert chosen.kind == "kvikio" or name == "auto"
    engine = open_engine(config)
    assert engine.name == f"{chosen.kind} direct"
    engine.close()


def test_a_handle_that_cannot_be_opened(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("cuFile driver error")

    monkeypatch.setattr(kvikio, "CuFile", refuse)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="cuFile driver error"):
        choice._open_striped("kvikio", (spill_directory,))
    assert set(os.listdir("/proc/self/fd")) == before


def test_store_round_trip(spill_directory: Path) -> None:
    config = OffloadConfig(directory=spill_directory, ioengine="kvikio")
    store = OffloadStore({"nvme": open_engine(config)}, max_inflight_bytes=2**30)
    values = [
        torch.randn(1000, 1000),
        torch.randn(333, 777).t(),
        torch.randint(0, 100, (7,)),
        torch.randn(3_000_001, dtype=torch.float64)[1:],
    ]
    total = sum(value.nbytes for value in values)
    tickets = []
    for index, value in enumerate(values):
        tickets.append(store.offload(value.clone(), f"value{index}", "nvme", True))
        store.release(tickets[-1], True)
    assert store.statistics().written_bytes == total
    for ticket, value in reversed(list(zip(tickets, values, strict=True))):
        store.prefetch(ticket)
        y = store.wait(ticket)
        assert torch.equal(y, value)
        store.free(ticket)
    done = store.statistics()
    assert (done.read_bytes, done.forwarded_bytes, done.live_bytes) == (total, 0, 0)
    assert (done.inflight_bytes, done.write_errors, done.read_errors) == (0, 0, 0)
    assert done.ioengine == "kvikio direct"
    store.close()


def test_parity_of_a_compiled_model(spill_directory: Path, fresh_dynamo: None) -> None:
    def train(enabled: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        layers = [layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.Tanh())]
        model = nn.Sequential(*layers)
        step = fxoffload.compile(
            model,
            compiler="eager",
            directory=spill_directory,
            ioengine="kvikio",
            memory_budget="min",
            min_bytes=1024,
            enabled=enabled,
        )
        x = torch.randn(2048, 64)
        for _ in range(3):
            step(x).square().mean().backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    fxoffload.reset_statistics()
    expected, actual = train(enabled=False), train(enabled=True)
    assert len(expected) == 8
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    close_stores()  # A value that was forwarded may still be on its way out until then.
    done = fxoffload.statistics()
    assert done.ioengine == "kvikio direct"
    assert done.offloads > 0
    assert done.offloaded_bytes >= 3 * 2048 * 64 * 4
    assert done.read_bytes + done.forwarded_bytes == done.offloaded_bytes
    assert (done.live_bytes, done.write_errors, done.read_errors) == (0, 0, 0)
