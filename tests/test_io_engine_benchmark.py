"""The code of benchmarks/io_engine.py: known cases, a fake fio, and a tiny run."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from python_runs import run_python

from fxoffload.sizes import MIB

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks import fio, io_engine, io_engine_report
from benchmarks.block_device import (
    BlockDevice,
    DeviceUnknown,
    count_round,
    read_process_written_bytes,
)
from benchmarks.fio import FioFailed, FioJob, find_jobs, prepare_file, run_fio
from benchmarks.transfers import TIER, EngineTransfers, StoreTransfers, Timing, make_values
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.store.store import OffloadStore

KIB = 2**10


# fio


def install_fio(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> Path:
    """Puts a program called fio on PATH; it leaves its arguments in the file that is returned."""
    arguments = folder / "arguments"
    script = folder / "fio"
    script.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"open({str(arguments)!r}, 'w').write('\\n'.join(sys.argv[1:]))\n{body}\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return arguments


def answer(**changes: Any) -> str:
    """A program text that prints what fio prints for a write and a read of 8 MiB."""
    groups: list[dict[str, Any]] = []
    for direction, seconds in (("write", 1), ("read", 2)):
        moved = {"io_bytes": 8 * MIB, "bw_bytes": 8 * MIB // seconds}
        group = {"error": 0, "usr_cpu": 5.0, "sys_cpu": 20.0, "job_runtime": 4000}
        groups.append({**group, direction: moved})
    for key, value in changes.items():
        (groups[1]["read"] if key == "io_bytes" else groups[1])[key] = value
    return f"print('note: of fio'); print({json.dumps(json.dumps({'jobs': groups}))})"


def run_tiny() -> list[Timing]:
    jobs = [FioJob("write", "psync", 2, 1), FioJob("read", "libaio", 1, 8)]
    return run_fio(jobs, Path("/a:b"), MIB, 8 * MIB)


def test_fio_is_asked_and_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = install_fio(tmp_path, monkeypatch, answer())
    assert run_tiny() == [(8 * MIB, 1.0, 1.0), (8 * MIB, 2.0, 1.0)]
    common, write, read = (set(part) for part in split_jobs(arguments.read_text().splitlines()))
    assert {f"--bs={MIB}", "--direct=1", "--filename=/a\\:b", "--group_reporting"} <= common
    assert {"--rw=write", "--numjobs=2", "--iodepth=1", f"--size={4 * MIB}"} <= write
    assert f"--offset_increment={4 * MIB}" in write
    assert {"--rwmixread=100", "--numjobs=1", "--iodepth=8", f"--size={8 * MIB}"} <= read
    assert "--stonewall" in read, "both at once would slow each other"


def split_jobs(arguments: Sequence[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for argument in arguments:
        if argument.startswith("--name="):
            yield part
            part = []
        part.append(argument)
    yield part


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (answer(io_bytes=MIB), f"fio .libaio 1x8. moved {MIB} of {8 * MIB} bytes, error 0"),
        (answer(error=5), "error 5"),
        (
            "sys.exit('no such ioengine')",
            "fio .psync 2x1, libaio 1x8. ended with status 1: no such",
        ),
    ],
)
def test_failure_of_fio_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    install_fio(tmp_path, monkeypatch, body)
    with pytest.raises(FioFailed, match=message):
        run_tiny()


def test_ioengine_that_does_not_work_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = {"error": 0, "usr_cpu": 0, "sys_cpu": 0, "job_runtime": 1}
    written = {"io_bytes": 8 * MIB, "bw_bytes": 1}
    text = json.dumps({"jobs": [{**group, "write": written}]})
    refuse = "if '--ioengine=io_uring' in sys.argv: sys.exit('Operation not permitted')"
    install_fio(tmp_path, monkeypatch, f"{refuse}\nprint({text!r})")
    monkeypatch.setattr(fio, "PREPARE_BYTES", 8 * MIB)
    assert prepare_file(tmp_path / "file", 8 * MIB) == {"psync", "libaio"}


def test_nothing_runs_without_fio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FioFailed, match="fio is not on PATH"):
        run_tiny()
    with pytest.raises(SystemExit) as stop:
        io_engine.main(["--directory", str(tmp_path)])
    assert stop.value.code == 2
    assert (
        "fio is not on PATH; install it (Debian: fio) or pass --no-fio" in capsys.readouterr().err
    )


def test_jobs_fit_into_memory_and_into_the_bytes() -> None:
    def names(nbytes: int, total_bytes: int) -> list[str]:
        return [str(job) for job in find_jobs("read", nbytes, total_bytes)]

    all_jobs = ["psync 1x1", "psync 2x1", "psync 4x1", "libaio 1x8", "io_uring 1x8"]
    assert names(MIB, 512 * MIB) == all_jobs
    assert names(MIB, 15 * MIB) == [name for name in all_jobs if name != "psync 4x1"]
    assert names(256 * MIB, 1024 * MIB) == ["psync 1x1", "libaio 1x2", "io_uring 1x2"]


@pytest.mark.skipif(shutil.which("fio") is None, reason="needs fio")
def test_real_fio(spill_directory: Path) -> None:
    path = spill_directory / "file"
    assert "psync" in prepare_file(path, 8 * MIB)
    jobs = [FioJob("write", "psync", 2, 1), FioJob("read", "psync", 2, 1)]
    timings = run_fio(jobs, path, MIB, 8 * MIB)
    assert [timing.nbytes for timing in timings] == [8 * MIB, 8 * MIB]
    assert all(timing.seconds > 0 for timing in timings)
    assert path.stat().st_size == 8 * MIB


# Counters of others


def make_device(directory: Path) -> Path:
    """A folder like /sys/dev/block with the counters of the device that `directory` is on."""
    number = os.stat(directory).st_dev
    folder = directory / "block" / f"{os.major(number)}:{os.minor(number)}"
    folder.mkdir(parents=True)
    (folder / "stat").write_text("1 2 3 4 5 6 1000 8 9 10 11\n")
    return folder.parent


def test_device_counter_is_found_by_its_number(tmp_path: Path) -> None:
    device = BlockDevice(tmp_path, make_device(tmp_path))
    assert device.read_written_bytes() == 512_000
    assert re.fullmatch(r"\d+:\d+", device.name)


def test_directory_without_a_device_is_told(tmp_path: Path) -> None:
    with pytest.raises(DeviceUnknown, match="no counter of a block device can be read"):
        BlockDevice(tmp_path, tmp_path / "none")


def test_process_counter_counts_what_is_written(spill_directory: Path) -> None:
    before = read_process_written_bytes()
    if before is None:
        pytest.skip("the kernel does not count")
    with (spill_directory / "file").open("wb") as file:
        file.write(os.urandom(4 * MIB))
    after = read_process_written_bytes()
    assert after is not None
    assert 4 * MIB <= after - before < 5 * MIB


def test_pauses_around_a_round_are_counted_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = BlockDevice(tmp_path, make_device(tmp_path))
    marks = iter((100, 107, 1107, 1110))
    monkeypatch.setattr(device, "read_written_bytes", lambda: next(marks))
    counts = count_round(device, lambda: None, 0.0)
    assert (counts["pause_bytes"], counts["device_bytes"]) == ((7, 3), 1000)
    assert counts["process_bytes"] in (0, None)


def test_busy_threads_end() -> None:
    before = set(threading.enumerate())
    with io_engine.keep_busy(1):
        assert len(set(threading.enumerate()) - before) == 2
    assert set(threading.enumerate()) == before


# Transfers


@pytest.fixture
def engine() -> Iterator[MemoryEngine]:
    memory = MemoryEngine(64 * MIB)
    yield memory
    memory.close()


def test_engine_transfers_move_every_value(engine: MemoryEngine) -> None:
    transfers = EngineTransfers(engine, make_values(100_000, 2), 5)
    for _ in range(2):
        transfers.write()
        transfers.read()
        transfers.free()
    transfers.close()
    assert engine.end_bytes == 0


def ended(result: int) -> Future[int]:
    future: Future[int] = Future()
    future.set_result(result)
    return future


def forget_write(view: memoryview, offset: int) -> Future[int]:
    return ended(len(view))


def cut_write(view: memoryview, offset: int) -> Future[int]:
    return ended(len(view) - 1)


@pytest.mark.parametrize(
    ("broken", "message"),
    [(forget_write, "came back changed"), (cut_write, "memory: 99999 of 100000 bytes moved")],
)
def test_engine_that_loses_bytes_is_found(
    engine: MemoryEngine,
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[[memoryview, int], Future[int]],
    message: str,
) -> None:
    transfers = EngineTransfers(engine, make_values(100_000, 2), 4)
    monkeypatch.setattr(engine, "write", broken)

    def run() -> None:
        transfers.write()
        transfers.read()
        transfers.free()

    with pytest.raises(RuntimeError, match=message):
        run()


def test_store_transfers_move_every_value() -> None:
    store = OffloadStore({TIER: MemoryEngine(64 * MIB)}, max_inflight_bytes=MIB)
    transfers = StoreTransfers(store, make_values(100_000, 2), 5)
    for _ in range(2):
        transfers.write()
        assert store.statistics().live_bytes == transfers.moved_bytes == 500_000
        transfers.read()
        transfers.free()
    done = store.statistics()
    assert done.written_bytes == done.read_bytes == 1_000_000
    assert (done.live_bytes, done.inflight_bytes) == (0, 0)
    store.close()


def test_store_that_loses_a_value_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = MemoryEngine(64 * MIB)
    store = OffloadStore({TIER: engine}, max_inflight_bytes=MIB)
    transfers = StoreTransfers(store, make_values(100_000, 2), 4)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "write", forget_write)
        transfers.write()
    with pytest.raises(RuntimeError, match="a value of 64 bytes came back changed"):
        transfers.read()
    store.close()


@pytest.mark.filterwarnings("ignore:value.*could not be offloaded:RuntimeWarning")
def test_store_that_writes_too_little_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = MemoryEngine(64 * MIB)
    store = OffloadStore({TIER: engine}, max_inflight_bytes=MIB)
    transfers = StoreTransfers(store, make_values(100_000, 2), 4)
    monkeypatch.setattr(engine, "write", cut_write)
    with pytest.raises(RuntimeError, match="the store has written 0 of 400000 bytes"):
        transfers.write()
    store.close()


# Report


def make_sample(contestant: str, number: int, seconds: float, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "sample",
        "load": "alone",
        "contestant": contestant,
        "size": 4 * MIB,
        "direction": "write",
        "round": number,
        "nbytes": 2**30,
        "seconds": seconds,
        "cpu_seconds": 0.1,
        **changes,
    }


def make_round(device_bytes: int, pause_bytes: Sequence[int] = (0, 0)) -> dict[str, Any]:
    return {
        "kind": "endurance",
        "engine": "posix",
        "value_bytes": 100_000,
        "moved_bytes": 100_000,
        "process_bytes": 100_000,
        "device_bytes": device_bytes,
        "pause_bytes": pause_bytes,
    }


def test_ratios_are_of_the_same_round() -> None:
    records = [make_sample("fio", number, seconds) for number, seconds in ((0, 1.0), (1, 4.0))]
    records += [make_sample("posix engine", n, seconds) for n, seconds in ((0, 2.0), (1, 2.0))]
    records += [make_sample("posix engine", 2, 1.0)]  # Without a partner.
    (found,) = io_engine_report.group_samples(records).values()
    assert io_engine_report.find_ratios(found["posix engine"], found["fio"]) == [0.5, 2.0]


@pytest.mark.parametrize(
    ("record", "misses"),
    [
        (make_sample("posix engine", 0, 1.05), []),
        (make_sample("posix engine", 0, 1.06), ["write of 4.0 MiB, alone: best engine is posix"]),
        (make_sample("posix engine", 0, 9.0, size=MIB), []),
        (make_sample("posix store", 0, 9.0), ["write of 4.0 MiB, alone: best store is posix"]),
        (make_sample("posix store", 0, 1.0, cpu_seconds=0.15), []),
        (make_sample("posix store", 0, 1.0, cpu_seconds=0.16), ["0.160 core-seconds per GiB"]),
        (make_sample("posix store", 0, 1.0, cpu_seconds=None), []),
        (make_round(101_900), []),
        (make_round(97_000), ["endurance, posix: the device's counter is off by -3.0%"]),
        (make_round(103_000), ["endurance, posix: the device's counter is off by 3.0%"]),
        (make_round(100_000, (0, 201)), ["others wrote to the device around every round"]),
    ],
)
def test_limits(record: dict[str, Any], misses: Sequence[str]) -> None:
    sizes = (MIB, 4 * MIB)
    records = [make_sample("fio", 0, 1.0, size=size) for size in sizes] + [record]
    found = io_engine_report.find_misses({"records": records})
    assert len(found) == len(misses)
    assert all(text in miss for text, miss in zip(misses, found, strict=True)), found


def test_the_best_engine_counts() -> None:
    records = [make_sample("fio", 0, 1.0), make_sample("kvikio engine", 0, 1.0)]
    records.append(make_sample("posix engine", 0, 2.0))
    assert io_engine_report.find_misses({"records": records}) == []


# A tiny run


def test_tiny_run(spill_directory: Path) -> None:
    output = spill_directory / "results.jsonl"
    # No transfer of so few bytes, which is not held against fio either, is slower than allowed.
    command = ("-m", "benchmarks.io_engine", "--no-fio", "--engines", "posix")
    sizes = ("--sizes", "64KiB", "256KiB", "--total", "1MiB", "--rounds", "2", "--window", "3")
    places = ("--directory", spill_directory, "--output", output)
    done = run_python(*command, *sizes, *places)
    for title in ("alone: GB/s", "busy: GB/s", "core-seconds per GiB", "bytes written"):
        assert title in done.stdout
    record = json.loads(output.read_text())
    assert record["filesystem"] != "tmpfs"
    records = record["records"]
    samples = [
        (r["load"], r["contestant"], r["size"], r["direction"], r["round"])
        for r in records
        if r["kind"] == "sample"
    ]
    assert samples == [
        (load, name, size, direction, number)
        for load in ("alone", "busy")
        for size in (64 * KIB, 256 * KIB)
        for number in range(2)
        for name in (("posix engine", "posix store"), ("posix store", "posix engine"))[number]
        for direction in ("write", "read")
    ]
    assert all(r["nbytes"] == MIB and r["seconds"] > 0 for r in records if r["kind"] == "sample")
    assert_endurance(records)
    assert list(spill_directory.iterdir()) == [output]


def assert_endurance(records: Sequence[dict[str, Any]]) -> None:
    (device,) = (r for r in records if r["kind"] == "device")
    rounds = [r for r in records if r["kind"] == "endurance"]
    if "unknown" in device:
        assert rounds == []
        return
    assert len(rounds) == 6
    for r in rounds:
        # Less than the values: what is not aligned stays with the ticket.
        assert r["value_bytes"] == 4 * (256 * KIB + 1000)
        assert 4 * 256 * KIB <= r["moved_bytes"] <= r["value_bytes"]
        assert r["process_bytes"] in (None, r["moved_bytes"])
        assert r["device_bytes"] >= r["moved_bytes"]
