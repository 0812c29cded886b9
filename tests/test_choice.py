"""The choice of an engine, the engine that is opened, and equal numbers in every process."""

from __future__ import annotations

import errno
import itertools
import os
import threading
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from python_runs import run_python

from fxoffload.config import IOEngineName, OffloadConfig
from fxoffload.errors import ConfigError, StoreFull
from fxoffload.runtime.engines import spill_file
from fxoffload.runtime.engines.posix import PosixEngine
from fxoffload.runtime.engines.spill_file import SpillFile
from fxoffload.runtime.measurement import bandwidth, choice
from fxoffload.runtime.measurement.bandwidth import ROUNDS, Bandwidth
from fxoffload.runtime.measurement.choice import choose_engine, open_engine
from fxoffload.runtime.measurement.probe_cache import cache_path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def directories(spill_directory: Path) -> list[Path]:
    found = [spill_directory / "a", spill_directory / "b"]
    for directory in found:
        directory.mkdir()
    return found


def test_posix_over_all_directories(directories: list[Path]) -> None:
    engine = open_engine(OffloadConfig(directory=directories, ioengine="posix"))
    assert isinstance(engine, PosixEngine)
    places = {engine.describe(engine.allocate(1)).split(" at ")[0] for _ in range(2)}
    assert places == {f"the spill file in {directory}" for directory in directories}
    engine.close()


def test_the_speeds_of_the_directories_reach_the_engine(
    directories: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {"a": 3e9, "b": 1e9}
    monkeypatch.setattr(
        choice,
        "_probe_directory",
        lambda kind, path: (path.name, Bandwidth(speeds[path.name], 2 * speeds[path.name])),
    )
    config = OffloadConfig(directory=directories, ioengine="posix")
    chosen = choose_engine(config)
    assert chosen.bandwidth == (4e9, 8e9)
    assert chosen.key.count("posix") == len(directories)
    monkeypatch.delattr(choice, "choose_engine")
    engine = open_engine(config, chosen)
    files = [engine.allocate(4096) >> 48 for _ in range(40)]
    assert (files.count(0), files.count(1)) == (30, 10)
    engine.close()


def test_one_file_system_is_counted_once(directories: list[Path]) -> None:
    before = set(os.listdir("/proc/self/fd"))
    chosen = choose_engine(OffloadConfig(directory=directories, ioengine="posix"))
    assert set(os.listdir("/proc/self/fd")) == before, "the files of the probe are closed"
    assert chosen.bandwidths[0] == chosen.bandwidths[1] == chosen.bandwidth
    assert str(chosen) == 'posix: ioengine="posix" was asked for'


def test_file_systems_differ_by_device_or_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subvolumes of one device have numbers of their own, and so have devices of one number."""
    systems = {Path("/a"): (16, 1), Path("/b"): (16, 2), Path("/c"): (17, 1)}
    known = SimpleNamespace(
        stat=lambda path: SimpleNamespace(st_dev=systems[path][0]),
        statvfs=lambda path: SimpleNamespace(f_fsid=systems[path][1]),
    )
    monkeypatch.setattr(choice, "os", known)
    monkeypatch.setattr(choice, "recall_pair", lambda key, measure: (1e9, 2e9))
    monkeypatch.setattr(choice, "_make_key", lambda kind, place: place)
    chosen = choice._choose("posix", "", [*systems, Path("/a")])
    assert chosen.bandwidth == (3e9, 6e9)
    assert chosen.key == "10-1 10-2 11-1"


@pytest.mark.parametrize(
    ("name", "speed", "expected"),
    [("auto", 1.09e9, "posix"), ("auto", 1.11e9, "kvikio"), ("kvikio", 1.0, "kvikio")],
)
def test_kvikio_is_taken_where_it_is_faster_by_more_than_noise(
    spill_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: IOEngineName,
    speed: float,
    expected: str,
) -> None:
    class Kvikio(PosixEngine):
        pass

    speeds = {"posix": Bandwidth(1e9, 1e9), "kvikio": Bandwidth(speed, speed)}
    monkeypatch.setattr(choice, "_probe_directory", lambda kind, path: (path.name, speeds[kind]))
    monkeypatch.setattr(choice, "find_obstacle", lambda: None)
    monkeypatch.setattr(choice, "KvikioEngine", Kvikio)
    config = OffloadConfig(directory=spill_directory, ioengine=name)
    assert choose_engine(config).kind == expected
    engine = open_engine(config)
    assert type(engine) is (Kvikio if expected == "kvikio" else PosixEngine)
    engine.close()


def test_numbers_are_kept_for_what_may_change_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice.platform, "node", lambda: "machine")
    monkeypatch.setattr(choice, "_DISTRIBUTIONS", ("numpy", "no-such-distribution"))
    assert choice._make_key("posix", "place") == (
        f"machine place posix {ROUNDS} rounds numpy {metadata.version('numpy')}"
    )


def test_the_probe_of_memory_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "LIMIT_SECONDS", 0.0)
    before = threading.active_count()
    assert min(choice.probe_memory()) > 0
    assert threading.active_count() == before


def test_memory_is_capped_by_the_host_budget() -> None:
    engine = open_engine(OffloadConfig(ioengine="memory", host_budget=4096))
    assert engine.name == "memory"
    engine.reserve(4096)
    with pytest.raises(StoreFull, match="the limit is 4\\.0 KiB"):
        engine.reserve(4097)
    engine.close()


def test_every_directory_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing"):
        open_engine(OffloadConfig(directory=[tmp_path, tmp_path / "missing"]))


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt("broken")])
def test_a_failed_opening_leaves_no_descriptor(
    directories: list[Path], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail_in_b(directory: Path) -> SpillFile:
        if directory.name == "b":
            raise error
        return SpillFile(directory)

    monkeypatch.setattr(choice, "SpillFile", fail_in_b)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(type(error), match="broken"):
        open_engine(OffloadConfig(directory=directories, ioengine="posix"))
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_buffered_file_is_warned_of_once(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill_file, "_enable_direct", lambda fd: None)
    with pytest.warns(RuntimeWarning, match="refuses direct I/O") as caught:
        engine = open_engine(OffloadConfig(directory=spill_directory, ioengine="posix"))
    assert len(caught) == 1
    assert engine.name == "posix buffered"
    engine.close()


@pytest.mark.parametrize("name", ["posix", "memory"])
def test_a_new_process_keeps_the_numbers(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch, name: IOEngineName
) -> None:
    noise = itertools.count(1)
    monkeypatch.setattr(
        choice, "measure_bandwidth", lambda engine: Bandwidth(next(noise) * 1e9, 1e9)
    )
    config = OffloadConfig(directory=spill_directory, ioengine=name)
    first = choose_engine(config)
    assert choose_engine(config) == first
    cache_path().unlink()
    assert choose_engine(config).bandwidth == (2e9, 1e9)


def test_a_process_that_cannot_keep_its_numbers_stays_with_them(
    spill_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    noise = itertools.count(1)
    monkeypatch.setattr(
        choice, "measure_bandwidth", lambda engine: Bandwidth(next(noise) * 1e9, 1e9)
    )
    config = OffloadConfig(directory=spill_directory, ioengine="posix")
    assert choose_engine(config) == choose_engine(config)


def test_another_process_finds_the_numbers(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import sys; from fxoffload.config import OffloadConfig; from fxoffload.runtime import *;"
        "choice = choose_engine(OffloadConfig(directory=sys.argv[1], ioengine='posix'));"
        "print(*choice.bandwidth)"
    )
    done = run_python("-c", program, spill_directory)
    monkeypatch.delattr(choice, "measure_bandwidth")
    chosen = choose_engine(OffloadConfig(directory=spill_directory, ioengine="posix"))
    assert tuple(map(float, done.stdout.split())) == chosen.bandwidth
