"""Watch what a device holds while a measured step runs, and assign it to the op that ran last."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from fxoffload.ops import OpEvent
from fxoffload.runtime.program.half_run import HalfRun
from fxoffload.runtime.program.live_bytes import find_peak_bytes, restart_peak
from fxoffload.runtime.program.sampler import RATE, HeldSampler, Rate


class Held(NamedTuple):
    """Bytes of the device's memory: all that are live, and those that are not values of ours."""

    live_bytes: int
    held_bytes: int


class LiveWatch:
    """Samples `count()` at `rate` until `stop` is called, or until `count` returns None.

    The allocator of `device` may tell the most live bytes, which a sample may have missed.
    """

    def __init__(
        self, count: Callable[[], Held | None], device: torch.device, rate: Rate = RATE
    ) -> None:
        self._count = count
        self._device = device
        self._peak_bytes = 0
        restart_peak(device)
        self._last: tuple[HalfRun, OpEvent] | None = None  # The op that ran last.
        self._highest_live: int | None = None  # Since that op.
        self._sampler = HeldSampler(self._sample, rate)

    def note_half(self, run: HalfRun, found: Held | None) -> None:
        """Note the beginning of a half. found: what the device holds then."""
        run.gap_bytes, run.unseen_seconds = self._sampler.take()
        self._note(found)
        self._note_live_bytes()
        self._last = None

    def note_op(self, run: HalfRun, event: OpEvent) -> None:
        """Note that an op of the half has run."""
        highest, _ = self._sampler.take()
        if highest is not None and self._last is not None:
            last, before = self._last
            last.peak_bytes[before] = highest
        self._note_live_bytes()
        self._last = run, event

    def stop(self) -> None:
        """Stop sampling."""
        self._sampler.stop()

    def _note_live_bytes(self) -> None:
        """Assign the most live bytes since the last op to this op."""
        peak_bytes = find_peak_bytes(self._device)
        if peak_bytes is not None and peak_bytes > self._peak_bytes:
            self._peak_bytes = self._highest_live = peak_bytes
        highest, self._highest_live = self._highest_live, None
        if highest is not None and self._last is not None:
            last, before = self._last
            last.live_bytes[before] = highest

    def _note(self, found: Held | None) -> None:
        if found is not None:
            self._highest_live = max(found.live_bytes, self._highest_live or 0)

    def _sample(self) -> int | None:
        found = self._count()
        self._note(found)
        return None if found is None else found.held_bytes
