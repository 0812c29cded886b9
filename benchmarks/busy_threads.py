"""Load for measurements: what training does to the processors and to the GIL."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

import torch

# One product takes long without the GIL, so that the wait for the GIL between two is no pause.
_SIZE = 2048


@contextmanager
def keep_busy(compute_threads: int) -> Generator[None]:
    """Matrix products on `compute_threads` OpenMP threads, and a thread that holds the GIL."""
    stop = threading.Event()
    before = torch.get_num_threads()
    torch.set_num_threads(compute_threads)
    workers = [
        threading.Thread(target=work, args=(stop,), daemon=True) for work in (_multiply, _hold_gil)
    ]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        stop.set()
        for worker in workers:
            worker.join()
        torch.set_num_threads(before)


def _multiply(stop: threading.Event) -> None:
    left, out = torch.rand(_SIZE, _SIZE), torch.empty(_SIZE, _SIZE)
    while not stop.is_set():
        torch.mm(left, left, out=out)


def _hold_gil(stop: threading.Event) -> None:
    while not stop.is_set():
        sum(range(1000))
