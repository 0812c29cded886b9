"""A thread that samples what the device holds, while a step runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

SAMPLE_SECONDS = 0.001
# Of the time, the most in which it counts: on a CPU it takes that from the program. Less of it
# misses peaks, and few steps are measured.
SAMPLE_SHARE = 0.1
# A step in which no op has run for so long is not looked at any further.
IDLE_SECONDS = 10.0


class HeldSampler:
    """Calls `count` again and again until `stop`; keeps the highest since the last `take`."""

    def __init__(self, count: Callable[[], int | None]) -> None:
        self._count = count
        self._highest: int | None = None
        self._taken = time.monotonic()
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="fxoffload-sampler", daemon=True).start()

    def take(self) -> int | None:
        """The highest count since the last `take`; None if nothing was counted."""
        self._taken = time.monotonic()
        highest, self._highest = self._highest, None
        return highest

    def stop(self) -> None:
        """Stop counting."""
        self._stopped.set()

    def _run(self) -> None:
        pause = SAMPLE_SECONDS
        while not self._stopped.wait(pause):
            if time.monotonic() - self._taken > IDLE_SECONDS:
                return
            start = time.thread_time()
            found = self._count()
            pause = max(SAMPLE_SECONDS, (time.thread_time() - start) / SAMPLE_SHARE)
            if found is None:
                return
            highest = self._highest
            self._highest = found if highest is None else max(found, highest)
