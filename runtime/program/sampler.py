"""A thread that samples what the device holds, while a step runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Rate:
    """How often to count: pauses of `seconds` or longer, and at most `share` of the time.

    On a CPU, the time of counting is taken from the program.
    """

    seconds: float
    share: float


RATE = Rate(seconds=0.001, share=0.1)
# What eager operations hold between two graphs may last for a millisecond only.
CLOSE_RATE = Rate(seconds=0.0001, share=0.5)
# If no op has run for so long, sampling ends.
IDLE_SECONDS = 10.0


class Seen(NamedTuple):
    """What was counted in a period. highest: None if nothing was.

    unseen_seconds: the longest part of the period without a count.
    """

    highest: int | None
    unseen_seconds: float


class HeldSampler:
    """Calls `count` again and again until `stop`; keeps the highest since the last `take`."""

    def __init__(self, count: Callable[[], int | None], rate: Rate = RATE) -> None:
        self._count = count
        self._rate = rate
        self._highest: int | None = None
        self._taken = self._counted = time.monotonic()
        self._unseen_seconds = 0.0
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="fxoffload-sampler", daemon=True).start()

    def take(self) -> Seen:
        """What was counted since the last `take`."""
        self._note_time()
        self._taken = self._counted
        found = Seen(self._highest, self._unseen_seconds)
        self._highest, self._unseen_seconds = None, 0.0
        return found

    def stop(self) -> None:
        """Stop counting."""
        self._stopped.set()

    def _run(self) -> None:
        pause = self._rate.seconds
        while not self._stopped.wait(pause):
            if time.monotonic() - self._taken > IDLE_SECONDS:
                return
            start = time.thread_time()
            found = self._count()
            seconds = time.thread_time() - start
            pause = max(self._rate.seconds, seconds / self._rate.share - seconds)
            if found is None:
                return
            highest = self._highest
            self._highest = found if highest is None else max(found, highest)
            self._note_time()

    def _note_time(self) -> None:
        now = time.monotonic()
        self._unseen_seconds = max(self._unseen_seconds, now - self._counted)
        self._counted = now
