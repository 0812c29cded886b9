"""What the drive takes from the compute beside it: core-seconds per GiB, each way.

    python benchmarks/drive_contention.py --directory /mnt/nvme

Matrix products run on all threads, once alone and once while another thread moves blocks from or
to huge pages that it keeps, at a fixed rate. What the products lose beyond the core-seconds which
that thread uses is taken by the system below: by interrupts, and in a virtual machine by the host,
whose drive emulation runs on the cores that the machine computes on. No plan can hide it.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from fxoffload import OffloadConfig
from fxoffload.inspection.tables import format_table
from fxoffload.runtime.engines.spill_file import SpillFile

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import find_cpu_model

BLOCK_BYTES = 8 * 2**20
BLOCKS = 64
MATRIX_SIZE = 1024
GIB = 2**30

Direction = Literal["neither", "write", "read"]
DIRECTIONS: tuple[Direction, ...] = ("neither", "write", "read")


@dataclass(slots=True)
class Contention:
    """One entry for each pair: seconds of the products, GiB moved, core-seconds of the mover."""

    direction: Direction
    alone_seconds: list[float]
    beside_seconds: list[float]
    moved_gib: list[float]
    mover_core_seconds: list[float]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table and a JSON line."""
    arguments = build_parser().parse_args(argv)
    torch.set_num_threads(arguments.threads)
    (directory, *_) = OffloadConfig(directory=arguments.directory).directories
    file = SpillFile(directory)
    try:
        file.reserve(BLOCKS * BLOCK_BYTES)
        results = measure(file, arguments)
    finally:
        file.close()
    print(format_table([HEADING, *(make_row(item, arguments.threads) for item in results)]))
    record = {
        "benchmark": "drive_contention",
        "threads": arguments.threads,
        "bytes_per_second": arguments.bytes_per_second,
        "direct": file.direct,
        "torch": torch.__version__,
        "cpu": find_cpu_model(),
        "results": [asdict(item) for item in results],
    }
    line = json.dumps(record)
    print(line)
    if arguments.output is not None:
        with arguments.output.open("a") as output:
            output.write(line + "\n")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--directory", help="on the drive; default: see OffloadConfig")
    add("--threads", type=int, default=2, help="that compute")
    add("--pairs", type=int, default=12)
    add("--products", type=int, default=130, help="matrix products in one measurement")
    add("--bytes-per-second", type=float, default=0.5 * GIB)
    add("--output", type=Path, help="file to which the JSON line is appended")
    return parser


def measure(file: SpillFile, arguments: argparse.Namespace) -> list[Contention]:
    """All directions in turn, `pairs` times over, so that what else happens hits all alike."""
    block = make_block()
    for index in range(BLOCKS):  # So that nothing is read that was never written.
        os.pwrite(file.fd, block, index * BLOCK_BYTES)
    found = {direction: Contention(direction, [], [], [], []) for direction in DIRECTIONS}
    compute(arguments.products)
    for _ in range(arguments.pairs):
        for item in found.values():
            item.alone_seconds.append(compute(arguments.products))
            mover = Mover(file.fd, block, item.direction, arguments.bytes_per_second)
            mover.start()
            item.beside_seconds.append(compute(arguments.products))
            mover.stop()
            item.moved_gib.append(mover.moved_bytes / GIB)
            item.mover_core_seconds.append(mover.core_seconds)
    return list(found.values())


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


class Mover(threading.Thread):
    """Moves `block` at a steady rate until it is stopped; with "neither" it only keeps time."""

    def __init__(self, fd: int, block: memoryview, direction: Direction, rate: float) -> None:
        super().__init__()
        self.moved_bytes = 0
        self.core_seconds = 0.0
        self._fd, self._block, self._direction, self._rate = fd, block, direction, rate
        self._stopped = threading.Event()

    def run(self) -> None:
        """One block after the other."""
        start, core_start = time.perf_counter(), time.thread_time()
        while not self._stopped.is_set():
            offset = self.moved_bytes % (BLOCKS * BLOCK_BYTES)
            if self._direction == "write":
                moved = os.pwrite(self._fd, self._block, offset)
            elif self._direction == "read":
                moved = os.preadv(self._fd, [self._block], offset)
            else:
                moved = BLOCK_BYTES
            if moved != BLOCK_BYTES:
                raise OSError(f"{self._direction}: {moved} of {BLOCK_BYTES} bytes")
            self.moved_bytes += moved
            early = self.moved_bytes / self._rate - (time.perf_counter() - start)
            self._stopped.wait(max(0.0, early))
        self.core_seconds = time.thread_time() - core_start

    def stop(self) -> None:
        """Return when it has ended."""
        self._stopped.set()
        self.join()


HEADING = ("direction", "time beside / alone (range)", "core-s lost per GiB", "core-s of the mover")


def make_row(item: Contention, threads: int) -> tuple[str, ...]:
    """Medians over the pairs."""
    pairs = list(zip(item.alone_seconds, item.beside_seconds, item.moved_gib, strict=True))
    ratios = [beside / alone for alone, beside, _ in pairs]
    lost = [threads * (beside - alone) / gib for alone, beside, gib in pairs]
    own = [
        seconds / gib for seconds, gib in zip(item.mover_core_seconds, item.moved_gib, strict=True)
    ]
    return (
        item.direction,
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
        f"{statistics.median(lost):.3f}",
        f"{statistics.median(own):.3f}",
    )


if __name__ == "__main__":
    main()
