"""Measures the core-seconds per GiB that the drive takes from compute beside it, each way.

    python -m benchmarks.drive_contention --directory /mnt/nvme

Matrix products run on all threads, once alone and once while another thread moves blocks from or
to huge pages that it keeps, at a fixed rate. What the products lose beyond the core-seconds which
that thread uses is taken by the system below: by interrupts, and in a virtual machine by the host,
whose drive emulation runs on the cores that the machine computes on. No plan can hide it.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from benchmarks.fresh_process import Record
from benchmarks.runner import Arguments, Benchmark, Show, Table, describe_spread, option
from fxoffload import OffloadConfig
from fxoffload.runtime.engines.spill_file import SpillFile

BLOCK_BYTES = 8 * 2**20
BLOCKS = 64
MATRIX_SIZE = 1024
GIB = 2**30
DIRECTIONS = ("neither", "write", "read")
SAMPLES = ("alone_seconds", "beside_seconds", "moved_gib", "mover_core_seconds")


@dataclass(frozen=True, slots=True)
class ContentionArguments(Arguments):
    """The command line."""

    directory: str | None = option(None, "on the drive; default: see OffloadConfig")
    threads: int = option(2, "that compute")
    pairs: int = option(12)
    products: int = option(130, "matrix products in one measurement")
    bytes_per_second: float = option(0.5 * GIB)


def measure(arguments: ContentionArguments, show: Show) -> Record:
    """All directions in turn, `pairs` times over, so that what else happens hits all alike.

    Of each pair: seconds of the products, GiB moved, core-seconds of the mover.
    """
    torch.set_num_threads(arguments.threads)
    (directory, *_) = OffloadConfig(directory=arguments.directory).directories
    block, rate = make_block(), arguments.bytes_per_second
    results: dict[str, Record] = {
        name: {"direction": name, **{each: [] for each in SAMPLES}} for name in DIRECTIONS
    }
    with closing(SpillFile(directory)) as file, ThreadPoolExecutor(1) as thread:
        file.reserve(BLOCKS * BLOCK_BYTES)
        for index in range(BLOCKS):  # So that nothing is read that was never written.
            os.pwrite(file.fd, block, index * BLOCK_BYTES)
        compute(arguments.products)
        for number, direction in product(range(arguments.pairs), DIRECTIONS):
            show(f"pair {number + 1} of {arguments.pairs}: {direction}")
            alone_seconds = compute(arguments.products)
            stop = threading.Event()
            moving = thread.submit(move_blocks, file.fd, block, direction, rate, stop)
            beside_seconds = compute(arguments.products)
            stop.set()
            moved_bytes, core_seconds = moving.result()
            found = (alone_seconds, beside_seconds, moved_bytes / GIB, core_seconds)
            for name, sample in zip(SAMPLES, found, strict=True):
                results[direction][name].append(sample)
    return {"direct": file.direct, "results": [*results.values()]}


def move_blocks(
    fd: int, block: memoryview, direction: str, rate: float, stop: threading.Event
) -> tuple[int, float]:
    """Move `block` at a steady rate until `stop`; with "neither" only keep time.

    Returns the bytes moved, and the core-seconds of this thread.
    """
    transfer: dict[str, Callable[[int], int]] = {
        "neither": lambda offset: BLOCK_BYTES,
        "write": lambda offset: os.pwrite(fd, block, offset),
        "read": lambda offset: os.preadv(fd, [block], offset),
    }
    moved_bytes = 0
    start, core_start = time.perf_counter(), time.thread_time()
    while not stop.is_set():
        moved = transfer[direction](moved_bytes % (BLOCKS * BLOCK_BYTES))
        if moved != BLOCK_BYTES:
            raise OSError(f"{direction}: {moved} of {BLOCK_BYTES} bytes")
        moved_bytes += moved
        stop.wait(max(0.0, moved_bytes / rate - (time.perf_counter() - start)))
    return moved_bytes, time.thread_time() - core_start


def make_block() -> memoryview:
    """Bytes in huge pages, where the kernel has them: moving them costs it next to nothing."""
    size = 2 * BLOCK_BYTES
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    memory[:] = b"x" * size
    return memoryview(memory)[BLOCK_BYTES // 2 :][:BLOCK_BYTES]


def compute(products: int) -> float:
    """Seconds for `products` products of square matrices."""
    left, right = torch.ones(MATRIX_SIZE, MATRIX_SIZE), torch.ones(MATRIX_SIZE, MATRIX_SIZE)
    out = torch.empty(MATRIX_SIZE, MATRIX_SIZE)
    start = time.perf_counter()
    for _ in range(products):
        torch.mm(left, right, out=out)
    return time.perf_counter() - start


def tabulate(record: Record) -> list[Table]:
    """A row for each direction."""
    rows = [make_row(item, record["threads"]) for item in record["results"]]
    headings = ["direction", "time beside / alone (range)", "core-s lost per GiB"]
    return [Table([[*headings, "core-s of the mover"], *rows])]


def make_row(item: Record, threads: int) -> list[str]:
    """Medians over the pairs."""
    alone, beside, moved_gib, own = (np.array(item[name]) for name in SAMPLES)
    lost = threads * (beside - alone)
    per_gib = (f"{np.median(values / moved_gib):.3f}" for values in (lost, own))
    return [item["direction"], describe_spread((beside / alone).tolist()), *per_gib]


main = Benchmark("drive_contention", __doc__, ContentionArguments, measure, tabulate)

if __name__ == "__main__":
    main()
