"""What gpu_suite.py measures of the store, each work in the fresh process that it starts.

On the CPU it runs with tiny sizes, which shows that it works and nothing else. Seconds and bytes
throughout.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxoffload import OffloadConfig, OffloadError, ops, runtime
from fxoffload.runtime.devices.cuda import CudaDevice
from fxoffload.runtime.devices.staging import StagingArena
from fxoffload.runtime.engines.ioengine import IOEngine
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.measurement.choice import open_engine
from fxoffload.runtime.store.store import OffloadStore

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.activation_run import wait_for_writes
from benchmarks.fresh_process import report, run_child
from benchmarks.measure import MIB

ENGINES = ("posix", "kvikio", "memory")


@dataclass(frozen=True, slots=True)
class GpuWork:
    """One work of this script; `tiny` sizes only show that it works."""

    work: str
    device: str
    tiny: bool
    directory: str | None = None
    steps: int = 10


def measure_transfers(work: GpuWork) -> None:
    """Copies to and from pinned memory on a side stream: alone, and while matrices are multiplied.

    `compute_ratio` is what the copies cost the products: their seconds with over without.
    """
    on_cuda = work.device == "cuda"
    width, products = (128, 2) if work.tiny else (8192, 60)
    matrix = torch.randn(width, width, device=work.device, dtype=torch.bfloat16)
    side = torch.cuda.Stream() if on_cuda else None

    def compute() -> None:
        for _ in range(products):
            torch.mm(matrix, matrix)

    def time_copies(target: Tensor, source: Tensor, repeats: int, busy: bool) -> dict[str, float]:
        synchronize(work)
        start = time.perf_counter()
        if busy:
            compute()
        with torch.cuda.stream(side):
            for _ in range(repeats):
                target.copy_(source, non_blocking=True)
        if side is not None:
            side.synchronize()
        copied = time.perf_counter() - start
        synchronize(work)
        whole = time.perf_counter() - start
        return {"bytes_per_second": repeats * source.nbytes / copied, "whole_seconds": whole}

    compute()
    synchronize(work)
    start = time.perf_counter()
    compute()
    synchronize(work)
    compute_seconds = time.perf_counter() - start
    for nbytes in (2**16,) if work.tiny else (MIB, 16 * MIB, 256 * MIB):
        host = torch.zeros(nbytes, dtype=torch.uint8, pin_memory=on_cuda)
        device = torch.zeros(nbytes, dtype=torch.uint8, device=work.device)
        repeats = 2 if work.tiny else max(2, 2 * 2**30 // nbytes)
        for name, target, source in (("out", host, device), ("in", device, host)):
            time_copies(target, source, 1, busy=False)
            alone = time_copies(target, source, repeats, busy=False)
            busy = time_copies(target, source, repeats, busy=True)
            report(
                {
                    "direction": name,
                    "nbytes": nbytes,
                    "alone_bytes_per_second": alone["bytes_per_second"],
                    "busy_bytes_per_second": busy["bytes_per_second"],
                    "compute_seconds": compute_seconds,
                    "compute_ratio": busy["whole_seconds"] / compute_seconds,
                }
            )


def measure_ops(work: GpuWork) -> None:
    """Host seconds of one call of each op: medians, with nothing in flight that it waits for.

    "written": from the end of release to that of the write.
    """
    config = OffloadConfig(ioengine="memory")
    store = runtime.register_store(config, keeps_graph=lambda: False)
    for nbytes in (4096,) if work.tiny else (MIB, 16 * MIB):
        seconds: dict[str, list[float]] = {}

        def call(
            name: str, run: Callable[[], Any], seconds: dict[str, list[float]] = seconds
        ) -> Any:
            start = time.perf_counter()
            result = run()
            seconds.setdefault(name, []).append(time.perf_counter() - start)
            return result

        for _ in range(work.steps + 5):
            x = torch.zeros(nbytes, dtype=torch.uint8, device=work.device)
            like = (list(x.shape), list(x.stride()), x.dtype, x.device)
            synchronize(work)
            ticket = call("offload", lambda x=x: ops.OFFLOAD(x, store, "x", "nvme", True, 0))
            call("release", lambda x=x, t=ticket: ops.RELEASE(t, x, True))
            call("written", wait_for_writes)
            del x
            call("prefetch", lambda t=ticket: ops.PREFETCH(t))
            time.sleep(0.002 + nbytes / 2e9)  # The read, and its copy.
            call("wait", lambda t=ticket, like=like: ops.WAIT(t, *like))
            del ticket
        # The first ones allocate.
        medians = {name: statistics.median(times[5:]) for name, times in seconds.items()}
        report({"nbytes": nbytes, "median_seconds": medians, "calls": work.steps})
    runtime.close_stores()


def measure_engines(work: GpuWork) -> None:
    """Each engine from and to pinned memory: all writes at once, then all reads."""
    nbytes, count = (2**16, 4) if work.tiny else (64 * MIB, 16)
    for name in ENGINES:
        with tempfile.TemporaryDirectory(dir=find_directory(work)) as directory:
            try:
                config = OffloadConfig(directory=directory, ioengine=name)
                engine = open_engine(config)
            except (OffloadError, OSError) as error:
                report({"ioengine": name, "unavailable": str(error)})
                continue
            report({"ioengine": name, **time_engine(engine, nbytes, count, work)})
            engine.close()


def time_engine(engine: IOEngine, nbytes: int, count: int, work: GpuWork) -> dict[str, Any]:
    """Bytes per second; the second round counts, when the space has been written before."""
    arena = StagingArena(
        lambda size, pinned: torch.zeros(
            size, dtype=torch.uint8, pin_memory=pinned and work.device == "cuda"
        ),
        2 * nbytes * count,
    )
    views = [arena.take(nbytes).view for _ in range(count)]
    slots = [engine.allocate(nbytes) for _ in range(count)]
    rates: dict[str, float] = {}
    for _ in range(2):
        for name, start_transfer in (("write", engine.write), ("read", engine.read)):
            start = time.perf_counter()
            futures = [start_transfer(view, s) for view, s in zip(views, slots, strict=True)]
            moved = sum(future.result() for future in futures)
            if moved != nbytes * count:
                raise RuntimeError(f"{engine.name} moved {moved} of {nbytes * count} bytes")
            rates[name] = moved / (time.perf_counter() - start)
    return {"path": engine.name, "nbytes": nbytes, "count": count, "bytes_per_second": rates}


def measure_staging(work: GpuWork) -> None:
    """Pinned memory from step to step, of steps whose backward follows at once."""
    nbytes, count = (4096, 4) if work.tiny else (32 * MIB, 24)
    device = torch.device("cuda", 0) if work.device == "cuda" else torch.device("cpu")
    store = OffloadStore(
        {"nvme": MemoryEngine(2 * nbytes * count)}, max_inflight_bytes=nbytes * count
    )
    for step in range(work.steps):
        start = time.perf_counter()
        tickets = []
        for number in range(count):
            x = torch.full((nbytes // 4,), float(number), device=device)
            tickets.append(store.offload(x, f"x{number}", "nvme", True))
            store.release(tickets[-1], block=True)
        for number in reversed(range(count)):
            ticket = tickets.pop()
            store.prefetch(ticket)
            y = store.wait(ticket)
            if y[-1].item() != number:
                raise RuntimeError(f"step {step}: value {number} came back as {y[-1].item()}")
            store.free(ticket)
        record: dict[str, Any] = {"step": step, "seconds": time.perf_counter() - start}
        if work.device == "cuda":
            found = store._devices.find(device)
            assert isinstance(found, CudaDevice)
            calls = torch.cuda.host_memory_stats()["num_host_alloc"]
            record |= {"pinned_bytes": found.arena.pinned_bytes, "driver_calls": calls}
        report(record)
    store.close()


def find_directory(work: GpuWork) -> Path:
    """Where spill files go."""
    return OffloadConfig(directory=work.directory).directories[0]


def synchronize(work: GpuWork) -> None:
    """Wait for the device."""
    if work.device == "cuda":
        torch.cuda.synchronize()


WORKS: dict[str, Callable[[GpuWork], None]] = {
    "transfers": measure_transfers,
    "ops": measure_ops,
    "engines": measure_engines,
    "staging": measure_staging,
}


def work(record: dict[str, Any]) -> None:
    """Do what the parent asks for."""
    chosen = GpuWork(**record)
    WORKS[chosen.work](chosen)


if __name__ == "__main__":
    run_child(work)
