"""Loads processors and GIL as training does, while something else is measured."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial

import torch

# One product takes long without the GIL, so that the wait for the GIL between two is no pause.
_SIZE = 2048


@contextmanager
def keep_busy(compute_threads: int) -> Generator[None]:
    """Matrix products on `compute_threads` OpenMP threads, and a thread that holds the GIL."""
    stop = threading.Event()
    before = torch.get_num_threads()
    torch.set_num_threads(compute_threads)
    left, out = torch.rand(_SIZE, _SIZE), torch.empty(_SIZE, _SIZE)

    def repeat(work: Callable[[], object]) -> None:
        while not stop.is_set():
            work()

    works = (partial(torch.mm, left, left, out=out), lambda: sum(range(1000)))
    workers = [threading.Thread(target=repeat, args=(work,), daemon=True) for work in works]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        stop.set()
        for worker in workers:
            worker.join()
        torch.set_num_threads(before)
