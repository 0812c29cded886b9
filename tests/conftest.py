"""Fixtures of the tests, and their order: fast tests show failures early."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
import toys
from flaky_engine import FlakyEngine
from round_trips import CAP, check_empty

from fxoffload import backend
from fxoffload.config import OffloadConfig
from fxoffload.directories import find_filesystem
from fxoffload.graph import TrainingGraph
from fxoffload.runtime import kernels, register_store, stores
from fxoffload.runtime.engines.ioengine import IOEngine
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.engines.posix import PosixEngine
from fxoffload.runtime.engines.spill_file import SpillFile
from fxoffload.runtime.store.store import OffloadStore

BUILD = Path(__file__).parent.parent / "build"


_cache = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """What the package keeps between runs, and the processes that tests start: a place apart."""
    config.stash[_cache] = tempfile.TemporaryDirectory(prefix="fxoffload-cache-")
    os.environ["XDG_CACHE_HOME"] = config.stash[_cache].name


def pytest_unconfigure(config: pytest.Config) -> None:
    """Delete that place."""
    config.stash[_cache].cleanup()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that sample memory, then fast ones, then slow ones, each in the order of their files.

    A sample takes malloc microseconds in a young process, and milliseconds behind thousands of
    tests, whose fragments it counts; it then misses what is held for a millisecond.
    """
    order = ("samples_memory", "", "slow")

    def find_place(item: pytest.Item) -> int:
        return next((i for i, name in enumerate(order) if item.get_closest_marker(name)), 1)

    items.sort(key=find_place)


@pytest.fixture
def spill_directory(tmp_path: Path) -> Iterator[Path]:
    """An empty directory on a real disk: under the repository where tmp_path is in memory."""
    if find_filesystem(tmp_path) != "tmpfs":
        yield tmp_path
        return
    BUILD.mkdir(exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix="spill-", dir=BUILD))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """For tests that compile: nothing is left of the graphs of other tests."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threaded accumulation may differ in the last bits from run to run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def fresh_programs() -> None:
    """Nothing is known of the programs of other tests, and nothing that they left dies meanwhile.

    Memory that is freed while a step is measured hides as much that the step allocates.
    """
    kernels._programs.clear()
    gc.collect()


@pytest.fixture
def one_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """No graph is compiled anew, however long a busy machine waits for its drive."""
    monkeypatch.setattr(backend, "may_recut", lambda _: False)


@pytest.fixture
def trace(fresh_dynamo: None) -> Callable[..., TrainingGraph]:
    """`trace(function, *inputs)` is the TrainingGraph of one call (see toys.trace)."""
    return toys.trace


@cache
def trace_zoo(name: str) -> TrainingGraph:
    return toys.trace(toys.GRAPHS[name], toys.make_input())


@pytest.fixture(params=toys.GRAPHS)
def zoo_graph(request: pytest.FixtureRequest) -> TrainingGraph:
    """Every graph of the small zoo in turn: a copy, each traced once in a run."""
    return toys.copy_graph(trace_zoo(request.param))


@pytest.fixture(params=["posix", "memory"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> IOEngine:
    """Each engine that needs nothing of the machine."""
    if request.param == "posix":
        return PosixEngine([SpillFile(tmp_path)])
    return MemoryEngine(2**28)


@pytest.fixture
def memory_store() -> Iterator[OffloadStore]:
    """A store without a drive, for which each backward is the last one."""
    opened = OffloadStore(
        {"nvme": MemoryEngine(2**27)}, max_inflight_bytes=2**30, keeps_graph=lambda: False
    )
    yield opened
    opened.close()


@pytest.fixture
def store(engine: IOEngine) -> Iterator[OffloadStore]:
    """A store on `engine`, empty again behind the test."""
    store = OffloadStore({"nvme": engine}, max_inflight_bytes=CAP)
    yield store
    check_empty(store)
    store.close()


@pytest.fixture
def flaky(engine: IOEngine) -> FlakyEngine:
    """`engine`, which waits and fails when told to."""
    return FlakyEngine(engine)


@pytest.fixture
def last_store(flaky: FlakyEngine) -> Iterator[OffloadStore]:
    """A store on `flaky` in which every backward is the last."""
    store = OffloadStore({"nvme": flaky}, max_inflight_bytes=8 * 2**20, keeps_graph=lambda: False)
    yield store
    store.close()
    check_empty(store)


@pytest.fixture(params=["posix", "memory"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OffloadConfig]:
    """Options of a store with a host tier, which is closed behind the test."""
    known = set(stores._stores)
    yield OffloadConfig(directory=tmp_path, ioengine=request.param, host_budget="64MiB")
    for key in set(stores._stores) - known:
        stores._stores.pop(key).close()
        stores._wear.pop(key, None)


@pytest.fixture
def key(config: OffloadConfig) -> str:
    """The key of its store."""
    return register_store(config)
