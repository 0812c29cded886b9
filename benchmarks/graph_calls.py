"""Calls the ops of fxoffload on values as a compiled graph does, for benchmarks of a store."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from fxoffload import OffloadConfig, ops, runtime

OP_NAMES = ("offload", "release", "prefetch", "wait")


@contextmanager
def open_store(directory: Path | None, **options: Any) -> Generator[str]:
    """The name of a registered store with `options`, in a new folder of `directory`."""
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        config = OffloadConfig(directory=folder, **options)
        name = runtime.register_store(config, keeps_graph=lambda: False)
        try:
            yield name
        finally:
            runtime.find_store(name).close()


def make_calls(
    store: str, values: Sequence[Tensor], results: list[Tensor], tier: str = "nvme"
) -> dict[str, Callable[[int], Any]]:
    """By op: a function that calls it for the value at an index; waits append to `results`."""
    tickets: list[Tensor] = []
    # Made here, as the time of the calls is measured.
    likes = [(list(x.shape), list(x.stride()), x.dtype, x.device) for x in values]
    return {
        "offload": lambda index: tickets.append(
            ops.OFFLOAD(values[index], store, "value", tier, True, 0)
        ),
        "release": lambda index: ops.RELEASE(tickets[index], values[index]),
        "prefetch": lambda index: ops.PREFETCH(tickets[index]),
        "wait": lambda index: results.append(ops.WAIT(tickets[index], *likes[index])),
    }
