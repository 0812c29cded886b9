"""Keep the cores of the CPU busy while something else is measured."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def keep_computing(*, matrix_size: int = 1024) -> Generator[None]:
    """Compute matrix products on all threads of torch, in a thread of its own, until the end.

    Like a compiled kernel, a product does not hold the interpreter lock.
    """
    stop, started = threading.Event(), threading.Event()

    def compute() -> None:
        left = torch.ones(matrix_size, matrix_size)
        product = torch.empty_like(left)
        while not stop.is_set():
            torch.mm(left, left, out=product)
            started.set()

    thread = threading.Thread(target=compute, name="fxoffload-load", daemon=True)
    thread.start()
    started.wait()
    try:
        yield
    finally:
        stop.set()
        thread.join()
