"""Measures store and models on the GPU, each part in a fresh process of gpu_suite.py.

On the CPU it runs with tiny sizes, which shows that it works and nothing else.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.fresh_process import Record
from benchmarks.measure import MIB, record_step
from benchmarks.trainer import (
    Trainer,
    Workload,
    pair_steps,
    prove_transfers,
    synchronize,
    wait_for_writes,
)
from fxoffload import OffloadConfig, OffloadError, ops, runtime
from fxoffload.runtime.devices.cuda import CudaDevice
from fxoffload.runtime.devices.staging import StagingArena
from fxoffload.runtime.engines.ioengine import IOEngine
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.measurement.choice import open_engine
from fxoffload.runtime.store.store import OffloadStore

ENGINES = ("posix", "kvikio", "memory")
PAIRED_STEPS = 4


@dataclass(frozen=True, slots=True)
class GpuWork:
    """Where to measure; `tiny` sizes only show that it works."""

    device: str
    tiny: bool
    directory: str | None
    steps: int

    @property
    def on_cuda(self) -> bool:
        """Whether there is a GPU."""
        return self.device == "cuda"

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.on_cuda:
            torch.cuda.synchronize()


def measure_transfers(work: GpuWork) -> Iterator[Record]:
    """Copies to and from pinned memory on a side stream: alone, and while matrices are multiplied.

    `compute_ratio` is what the copies cost the products: their seconds with over without.
    """
    width, products = (128, 2) if work.tiny else (8192, 60)
    matrix = torch.randn(width, width, device=work.device, dtype=torch.bfloat16)
    side = torch.cuda.Stream() if work.on_cuda else None

    def compute() -> None:
        for _ in range(products):
            torch.mm(matrix, matrix)

    def time_copies(
        target: Tensor, source: Tensor, repeats: int, busy: bool
    ) -> tuple[float, float]:
        """Bytes per second of the copies, and seconds until the products are done as well."""
        work.synchronize()
        start = time.perf_counter()
        if busy:
            compute()
        with torch.cuda.stream(side):
            for _ in range(repeats):
                target.copy_(source, non_blocking=True)
        if side is not None:
            side.synchronize()
        copied = time.perf_counter() - start
        work.synchronize()
        return repeats * source.nbytes / copied, time.perf_counter() - start

    compute()
    work.synchronize()
    start = time.perf_counter()
    compute()
    work.synchronize()
    compute_seconds = time.perf_counter() - start
    for nbytes in (2**16,) if work.tiny else (MIB, 16 * MIB, 256 * MIB):
        host = torch.zeros(nbytes, dtype=torch.uint8, pin_memory=work.on_cuda)
        device = torch.zeros(nbytes, dtype=torch.uint8, device=work.device)
        repeats = 2 if work.tiny else max(2, 2 * 2**30 // nbytes)
        for name, target, source in (("out", host, device), ("in", device, host)):
            time_copies(target, source, 1, busy=False)
            alone_rate, _ = time_copies(target, source, repeats, busy=False)
            busy_rate, whole_seconds = time_copies(target, source, repeats, busy=True)
            yield {
                "direction": name,
                "nbytes": nbytes,
                "alone_bytes_per_second": alone_rate,
                "busy_bytes_per_second": busy_rate,
                "compute_seconds": compute_seconds,
                "compute_ratio": whole_seconds / compute_seconds,
            }


def measure_ops(work: GpuWork) -> Iterator[Record]:
    """Host seconds of one call of each op: medians, with nothing in flight that it waits for.

    "written": from the end of release to that of the write.
    """
    config = OffloadConfig(ioengine="memory")
    store = runtime.register_store(config, keeps_graph=lambda: False)
    for nbytes in (4096,) if work.tiny else (MIB, 16 * MIB):
        seconds: dict[str, list[float]] = {}

        def call(name: str, run: Callable[..., Any], *args: Any, into: Any = seconds) -> Any:
            start = time.perf_counter()
            result = run(*args)
            into.setdefault(name, []).append(time.perf_counter() - start)
            return result

        for _ in range(work.steps + 5):
            x = torch.zeros(nbytes, dtype=torch.uint8, device=work.device)
            like = (list(x.shape), list(x.stride()), x.dtype, x.device)
            work.synchronize()
            ticket = call("offload", ops.OFFLOAD, x, store, "x", "nvme", True, 0)
            call("release", ops.RELEASE, ticket, x)
            call("written", wait_for_writes)
            del x
            call("prefetch", ops.PREFETCH, ticket)
            time.sleep(0.002 + nbytes / 2e9)  # The read, and its copy.
            call("wait", ops.WAIT, ticket, *like)
            del ticket
        # The first ones allocate.
        medians = {name: statistics.median(times[5:]) for name, times in seconds.items()}
        yield {"nbytes": nbytes, "median_seconds": medians, "calls": work.steps}
    runtime.close_stores()


def measure_engines(work: GpuWork) -> Iterator[Record]:
    """Each engine from and to pinned memory: all writes at once, then all reads."""
    (parent, *_) = OffloadConfig(directory=work.directory).directories
    for name in ENGINES:
        with tempfile.TemporaryDirectory(dir=parent) as directory:
            try:
                engine = open_engine(OffloadConfig(directory=directory, ioengine=name))
            except (OffloadError, OSError) as error:
                yield {"ioengine": name, "unavailable": str(error)}
                continue
            yield {"ioengine": name, **time_engine(engine, work)}
            engine.close()


def time_engine(engine: IOEngine, work: GpuWork) -> Record:
    """Bytes per second; the second round counts, when the space has been written before."""
    nbytes, count = (2**16, 4) if work.tiny else (64 * MIB, 16)
    arena = StagingArena(
        lambda size, pinned: torch.zeros(
            size, dtype=torch.uint8, pin_memory=pinned and work.on_cuda
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


def measure_staging(work: GpuWork) -> Iterator[Record]:
    """Pinned memory from step to step, of steps whose backward follows at once."""
    nbytes, count = (4096, 4) if work.tiny else (32 * MIB, 24)
    device = torch.device("cuda", 0) if work.on_cuda else torch.device("cpu")
    engine = MemoryEngine(2 * nbytes * count)
    store = OffloadStore({"nvme": engine}, max_inflight_bytes=nbytes * count)
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
        record: Record = {"step": step, "seconds": time.perf_counter() - start}
        if work.on_cuda:
            found = store._devices.find(device)
            assert isinstance(found, CudaDevice)
            calls = torch.cuda.host_memory_stats()["num_host_alloc"]
            record |= {"pinned_bytes": found.arena.pinned_bytes, "driver_calls": calls}
        yield record
    store.close()


def measure_model(workload: Workload, pairs: int, proves: bool) -> Iterator[Record]:
    """Paired steps, then the activation peak of each.

    proves: makes one more step, whose every byte must move.
    """
    plain, moved = workload.make_trainer("plain"), workload.make_trainer("fxoffload")
    found = list(pair_steps(plain, moved, pairs, time_steps))
    ratios = [pair["fxoffload_seconds"] / pair["plain_seconds"] for pair in found]
    peaks = {"plain": find_peak_bytes(plain), "fxoffload": find_peak_bytes(moved)}
    yield {
        "peak_bytes": peaks,
        "peak_ratio": peaks["fxoffload"] / peaks["plain"],
        "predicted_peak_bytes": moved.schedule.peak_bytes if moved.schedule else None,
        "predicted_step_seconds": moved.schedule.step_seconds if moved.schedule else None,
        "plans": [str(moved.schedule)],
        "speeds": json.loads(runtime.cache_path().read_text()),
        "step_ratio": statistics.median(ratios),
        "compile_seconds": {"plain": plain.first_seconds, "fxoffload": moved.first_seconds},
        "proof": prove_transfers(moved) if proves else None,
        "pairs": found,
    }


def time_steps(trainer: Trainer) -> tuple[float, float]:
    """Loss of the last of some steps, and seconds of one: the host runs ahead, as in training."""
    synchronize(trainer.tokens)
    start = time.perf_counter()
    losses: list[torch.Tensor] = []
    for _ in range(PAIRED_STEPS):
        trainer.model.zero_grad()
        losses.append(trainer.compute_loss())
        losses[-1].backward()
    synchronize(trainer.tokens)
    return losses[-1].item(), (time.perf_counter() - start) / PAIRED_STEPS


def find_peak_bytes(trainer: Trainer) -> int:
    """Activation peak of a step, gradients included."""
    trainer.model.zero_grad()
    if not trainer.tokens.is_cuda:
        return record_step(trainer.compute_loss, trainer.tokens.device).peak_bytes
    torch.cuda.synchronize()
    before_bytes = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    trainer.step()
    return torch.cuda.max_memory_allocated() - before_bytes
