"""Measures store and models on the GPU, each part in a fresh process of gpu_suite.py.

On the CPU it runs with tiny sizes, which shows that it works and nothing else.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.fresh_process import Record
from benchmarks.graph_calls import make_calls, open_store
from benchmarks.measure import MIB, Loss, record_step
from benchmarks.trainer import (
    Trainer,
    Workload,
    pair_steps,
    prove_transfers,
    synchronize,
    wait_for_writes,
)
from benchmarks.transfers import DIRECTIONS, EngineTransfers, Values, time_transfers
from fxoffload import OffloadConfig, OffloadError, runtime
from fxoffload.cli.byte_models import Shape
from fxoffload.runtime.devices.cuda import CudaDevice
from fxoffload.runtime.devices.staging import StagingArena
from fxoffload.runtime.engines.ioengine import IOEngine
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.measurement.choice import open_engine
from fxoffload.runtime.store.store import OffloadStore

ENGINES = ("posix", "kvikio", "memory")
PAIRED_STEPS = 4
TIMED = ("offload", "release", "written", "prefetch", "wait")


class GpuWork(NamedTuple):
    """Where to measure; `tiny` sizes only show that it works."""

    device: str
    tiny: bool
    directory: str | None
    steps: int

    @property
    def on_cuda(self) -> bool:
        """Whether there is a GPU."""
        return self.device == "cuda"


def measure_transfers(work: GpuWork) -> Iterator[Record]:
    """Copies to and from pinned memory on a side stream: alone, and beside matrix products.

    compute_ratio: the seconds of the products with the copies over those without.
    """
    width, products = (128, 2) if work.tiny else (8192, 60)
    matrix = torch.randn(width, width, device=work.device, dtype=torch.bfloat16)
    side = torch.cuda.Stream() if work.on_cuda else None

    def compute() -> None:
        for _ in range(products):
            torch.mm(matrix, matrix)

    def time_work(*works: Callable[[], None]) -> tuple[float, float]:
        """Seconds until the side stream is done, and until the products are done as well."""
        synchronize(matrix)
        start = time.perf_counter()
        for call in works:
            call()
        if side is not None:
            side.synchronize()
        copied = time.perf_counter() - start
        synchronize(matrix)
        return copied, time.perf_counter() - start

    time_work(compute)
    _, compute_seconds = time_work(compute)
    for nbytes in (2**16,) if work.tiny else (MIB, 16 * MIB, 256 * MIB):
        host = torch.zeros(nbytes, dtype=torch.uint8, pin_memory=work.on_cuda)
        device = torch.zeros(nbytes, dtype=torch.uint8, device=work.device)
        repeats = 2 if work.tiny else max(2, 2 * 2**30 // nbytes)
        for name, target, source in (("out", host, device), ("in", device, host)):

            def copy(count: int = repeats, to: Tensor = target, of: Tensor = source) -> None:
                with torch.cuda.stream(side):
                    for _ in range(count):
                        to.copy_(of, non_blocking=True)

            time_work(partial(copy, 1))
            alone_seconds, _ = time_work(copy)
            busy_seconds, whole_seconds = time_work(compute, copy)
            yield {
                "direction": name,
                "nbytes": nbytes,
                "alone_bytes_per_second": repeats * nbytes / alone_seconds,
                "busy_bytes_per_second": repeats * nbytes / busy_seconds,
                "compute_seconds": compute_seconds,
                "compute_ratio": whole_seconds / compute_seconds,
            }


def measure_ops(work: GpuWork) -> Iterator[Record]:
    """Host seconds of one call of each op: medians, with nothing in flight that it waits for.

    "written": from the end of release to that of the write.
    """
    with open_store(None, ioengine="memory") as store:
        for nbytes in (4096,) if work.tiny else (MIB, 16 * MIB):
            seconds: dict[str, list[float]] = {name: [] for name in TIMED}
            for _ in range(work.steps + 5):
                x = torch.zeros(nbytes, dtype=torch.uint8, device=work.device)
                calls = make_calls(store, [x], [])
                calls["written"] = lambda _: wait_for_writes()
                synchronize(x)
                for name in TIMED:
                    if name == "wait":
                        time.sleep(0.002 + nbytes / 2e9)  # The read, and its copy.
                    start = time.perf_counter()
                    calls[name](0)
                    seconds[name].append(time.perf_counter() - start)
            # The first ones allocate.
            medians = {name: statistics.median(times[5:]) for name, times in seconds.items()}
            yield {"nbytes": nbytes, "median_seconds": medians, "calls": work.steps}


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
    transfers = EngineTransfers(engine, Values(nbytes, views, views), count)
    time_transfers(transfers, nbytes * count)
    timings = zip(DIRECTIONS, time_transfers(transfers, nbytes * count), strict=True)
    rates = {direction: timing.nbytes / timing.seconds for direction, timing in timings}
    return {"path": engine.name, "nbytes": nbytes, "count": count, "bytes_per_second": rates}


def measure_staging(work: GpuWork) -> Iterator[Record]:
    """The pinned memory after each of several steps."""
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
    """Paired steps, then the activation peak of each, gradients included.

    proves: makes one more step, whose every byte must move.
    """
    plain, moved = workload.make_trainer("plain"), workload.make_trainer("fxoffload")
    found = list(pair_steps(plain, moved, pairs, time_steps))
    ratios = [pair["fxoffload_seconds"] / pair["plain_seconds"] for pair in found]
    peaks: dict[str, int] = {}
    for name, trainer in (("plain", plain), ("fxoffload", moved)):
        trainer.model.zero_grad()
        peaks[name] = record_step(trainer.compute_loss, trainer.tokens.device).peak_bytes
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
    """The last loss of PAIRED_STEPS steps without a sync between them, and seconds per step."""
    synchronize(trainer.tokens)
    start = time.perf_counter()
    losses: list[Loss] = []
    for _ in range(PAIRED_STEPS):
        trainer.model.zero_grad()
        losses.append(trainer.compute_loss())
        losses[-1].backward()
    synchronize(trainer.tokens)
    return losses[-1].detach().item(), (time.perf_counter() - start) / PAIRED_STEPS


def main() -> None:
    """Print the records of a measurement, whose arguments come as JSON."""
    part, text = sys.argv[1:]
    arguments = json.loads(text)
    if part == "model":
        workload = arguments.pop("workload")
        workload["shape"] = Shape(**workload["shape"])
        records = measure_model(Workload(**workload), **arguments)
    else:
        records = PROBES[part](GpuWork(**arguments))
    for record in records:
        print(json.dumps(record), flush=True)


PROBES = {
    "transfers": measure_transfers,
    "ops": measure_ops,
    "engines": measure_engines,
    "staging": measure_staging,
}

if __name__ == "__main__":
    main()
