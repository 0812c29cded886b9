"""The GDS engine with the real KvikIO on fake drivers; test_gds_engine.py runs this file."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kvikio.defaults
import numpy as np
import pytest
from engine_contract import EngineContract

from fxoffload.config import OffloadConfig
from fxoffload.errors import ConfigError
from fxoffload.runtime.engines import gds_engine
from fxoffload.runtime.engines.gds_engine import GdsEngine, find_gds_obstacle
from fxoffload.runtime.engines.metered import MeteredEngine
from fxoffload.runtime.engines.spill_file import SpillFile
from fxoffload.runtime.measurement.choice import choose_engine, open_engine
from fxoffload.sizes import MIB


@dataclass
class Log:
    """What the engine asked torch.cuda for."""

    devices: list[Any] = field(default_factory=list[Any])
    streams: list[Any] = field(default_factory=list[Any])
    waited: list[Any] = field(default_factory=list[Any])


class Stream:
    def __init__(self, log: Log, device: str, priority: int) -> None:
        assert priority < 0
        log.streams.append(self)
        self.device, self.cuda_stream = device, len(log.streams)


class Event:
    def __init__(self, log: Log, blocking: bool) -> None:
        assert blocking
        self.log = log

    def record(self, stream: Stream) -> None:
        self.stream = stream

    def synchronize(self) -> None:
        self.log.waited.append(self.stream)


class DeviceMemory:
    """A "tensor" of uint8 in "device memory"."""

    device = "cuda:1"

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.nbytes = array.nbytes

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.array.__array_interface__, "version": 3}


def make_memory(nbytes: int, seed: int | None = None) -> Any:
    """Aligned to a page, as direct I/O of the fake driver needs it."""
    array = np.zeros(nbytes + 4096, np.uint8)
    start = -array.ctypes.data % 4096
    array = array[start : start + nbytes]
    if seed is not None:
        array[:] = np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)
    return DeviceMemory(array)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    log = Log()

    @contextlib.contextmanager
    def device(chosen: str) -> Iterator[None]:
        log.devices.append(chosen)
        yield

    cuda = SimpleNamespace(
        device=device,
        Stream=lambda device, priority: Stream(log, device, priority),
        Event=lambda blocking: Event(log, blocking),
    )
    monkeypatch.setattr(gds_engine, "torch", SimpleNamespace(cuda=cuda))
    return log


@pytest.fixture
def engine(spill_directory: Path, log: Log) -> Iterator[GdsEngine]:
    engine = GdsEngine([SpillFile(spill_directory)])
    yield engine
    engine.close()


class TestContract(EngineContract):
    """Of host memory."""


def move(engine: GdsEngine | MeteredEngine, memory: Any, offset: int, *, write: bool) -> int:
    assert engine.move_device is not None
    return engine.move_device(memory, offset, write=write).result()


def test_there_is_no_obstacle() -> None:
    assert find_gds_obstacle() is None


@pytest.mark.parametrize("nbytes", [4096, MIB, 40 * MIB])
def test_device_memory_comes_back(engine: GdsEngine, log: Log, nbytes: int) -> None:
    assert engine.name == "kvikio gds"
    memory, back = make_memory(nbytes, seed=1), make_memory(nbytes)
    other, offset = engine.allocate(nbytes), engine.allocate(nbytes)
    assert move(engine, make_memory(nbytes, seed=2), other, write=True) == nbytes
    assert move(engine, memory, offset, write=True) == nbytes
    assert move(engine, back, offset, write=False) == nbytes
    assert np.array_equal(back.array, memory.array)
    view = memoryview(np.zeros(nbytes + 4096, np.uint8))
    start = -np.frombuffer(view, np.uint8).ctypes.data % 4096
    view = view[start : start + nbytes]
    engine.read(view, offset).result()
    assert view == memoryview(memory.array), "the same bytes as through host memory"
    assert log.devices == ["cuda:1"] * 3
    # One stream serves transfers that follow each other; the thread sleeps until each has ended.
    assert log.waited == log.streams * 3


def test_transfers_that_overlap_have_streams_of_their_own(
    engine: GdsEngine, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(3)
    monkeypatch.setattr(Event, "synchronize", lambda self: together.wait(30))
    assert engine.move_device is not None
    futures = [
        engine.move_device(make_memory(MIB), engine.allocate(MIB), write=True) for _ in range(3)
    ]
    assert [future.result() for future in futures] == [MIB] * 3
    assert len(log.streams) == 3


def test_the_load_of_a_drive_counts_device_memory(engine: GdsEngine) -> None:
    offset = engine.allocate(MIB)
    move(engine, make_memory(MIB), offset, write=True)
    assert [event.nbytes for event in engine._events] == [MIB, -MIB]
    assert engine._events[-1].failed is False


def test_a_window_measures_it(engine: GdsEngine) -> None:
    metered = MeteredEngine(engine)
    window = metered.open_window()
    offset = metered.allocate(MIB)
    move(metered, make_memory(MIB), offset, write=True)
    move(metered, make_memory(MIB), offset, write=False)
    flow = window.close()
    assert (flow.write.nbytes, flow.read.nbytes) == (MIB, MIB)
    assert min(flow.write.seconds, flow.read.seconds) > 0


@pytest.mark.parametrize(
    ("fails", "write", "text"),
    [
        ("WriteAsync", True, "cuFile error"),
        ("ReadAsync", False, "cuFile error"),
        ("short read", False, f"short transfer: {MIB // 2} of {MIB} bytes"),
    ],
)
def test_errors_come_out_of_the_future(
    engine: GdsEngine, monkeypatch: pytest.MonkeyPatch, fails: str, write: bool, text: str
) -> None:
    offset = engine.allocate(MIB)
    move(engine, make_memory(MIB), offset, write=True)
    monkeypatch.setenv("FAKE_CUFILE_FAILS", fails)
    with pytest.raises(OSError, match=text) as caught:
        move(engine, make_memory(MIB), offset, write=write)
    assert caught.value.errno == errno.EIO


def test_reading_behind_the_end_is_an_error(engine: GdsEngine) -> None:
    with pytest.raises(OSError, match=f"short transfer: 0 of {MIB} bytes"):
        move(engine, make_memory(MIB), 2**40, write=False)


def test_a_file_that_cufile_refuses(
    spill_directory: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No fallback to copies through host memory, and no setting of the process changed."""
    monkeypatch.setenv("FAKE_CUFILE_FAILS", "HandleRegister")
    file = SpillFile(spill_directory)
    with pytest.raises(OSError, match="kvikio"):
        GdsEngine([file])
    file.close()
    assert kvikio.defaults.get("compat_mode") == kvikio.CompatMode.AUTO
    before = set(os.listdir("/proc/self/fd"))
    config = OffloadConfig(directory=spill_directory, ioengine="gds")
    with pytest.raises(ConfigError, match=rf'"gds": cuFile cannot use a file in {spill_directory}'):
        open_engine(config)
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("fails", "fact"),
    [
        ("DriverOpen", "cuFile cannot be used"),
        ("nvidia-fs", "cuFile finds no driver nvidia-fs"),
        ("config", "cuFile has no configuration"),
    ],
)
def test_obstacles_are_told_with_a_remedy(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch, fails: str, fact: str
) -> None:
    monkeypatch.setenv("FAKE_CUFILE_FAILS", fails)
    if fails == "config":
        monkeypatch.setattr(gds_engine, "CONFIG_PATH", "/none/cufile.json")
        monkeypatch.delenv("CUFILE_ENV_PATH_JSON")
    elif fails == "nvidia-fs":
        driver = gds_engine.importlib.import_module("kvikio.cufile_driver")
        monkeypatch.setattr(driver, "properties", driver.cufile_driver.DriverProperties())
    with pytest.raises(ConfigError, match=f'ioengine="gds": .*{fact}.*nvidia-gds') as caught:
        choose_engine(OffloadConfig(directory=spill_directory, ioengine="gds"))
    assert caught.value.__cause__ is None


def test_what_was_asked_for_is_opened(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(spill_directory))
    engine = open_engine(OffloadConfig(directory=spill_directory, ioengine="gds"))
    assert engine.name == "kvikio gds"
    engine.close()


def test_nothing_is_left_behind(spill_directory: Path, log: Log) -> None:
    before, threads = set(os.listdir("/proc/self/fd")), set(threading.enumerate())
    engine = GdsEngine([SpillFile(spill_directory)])
    move(engine, make_memory(MIB), engine.allocate(MIB), write=True)
    ours = {thread.name.rpartition("_")[0] for thread in set(threading.enumerate()) - threads}
    assert {"fxoffload-gds-write", "fxoffload-gds-read"} <= ours
    engine.close()
    engine.close()
    assert {thread for thread in set(threading.enumerate()) - threads if thread.is_alive()} == set()
    assert set(os.listdir("/proc/self/fd")) <= before
