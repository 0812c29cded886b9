"""Clocks: when the ops of a compiled graph ran, and the seconds of compute between them."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from fxoffload.ops import OpEvent

Mark = float | torch.cuda.Event


def mark_now(device: torch.device) -> Mark:
    """The present time in the work of `device`: time.perf_counter() in seconds; a GPU's event.

    The host runs ahead of a GPU, so the host's time does not measure the nodes on a GPU.
    """
    if device.type != "cuda":
        return time.perf_counter()
    with torch.cuda.device(device):
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream())
        return event


def find_clocks(marks: Mapping[OpEvent, tuple[Mark, Mark]]) -> dict[OpEvent, float]:
    """The clock of each op in seconds of compute, not counting the time within ops.

    marks: when each op began and ended, in order. Waits for CUDA events that have not passed.
    """
    clock, left = 0.0, None
    clocks: dict[OpEvent, float] = {}
    for event, (enter, leave) in marks.items():
        if left is not None:
            clock += find_seconds(left, enter)
        clocks[event] = clock
        left = leave
    return clocks


def find_seconds(start: Mark, end: Mark) -> float:
    """Seconds from `start` to `end`; 0 if they are of two devices, which have no common clock."""
    if isinstance(start, float | int) and isinstance(end, float | int):
        return end - start
    if isinstance(start, float | int) or isinstance(end, float | int) or start.device != end.device:
        return 0.0
    end.synchronize()
    return start.elapsed_time(end) / 1e3
