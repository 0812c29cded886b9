"""Price: estimate the compute time that a transferred byte takes, from whole steps of the run.

On a CPU the cores compute the graph and serve the drive. Steps that moved much and steps that moved
little, in turns, show how much longer a step computes for each byte.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

# The number of steps of each kind that are kept, and the least from which a price is estimated.
KEPT_SAMPLES = 5
LEAST_SAMPLES = 4
# Steps that moved much moved at least this part more bytes than those that moved little.
LEAST_DIFFERENCE = 0.2


class Sample(NamedTuple):
    """One step: bytes written and read, and its seconds without those of waiting for them."""

    nbytes: int
    seconds: float


@dataclass(slots=True)
class Samples:
    """The latest steps that moved much, and the latest ones that moved little."""

    much: deque[Sample] = field(default_factory=lambda: deque[Sample](maxlen=KEPT_SAMPLES))
    little: deque[Sample] = field(default_factory=lambda: deque[Sample](maxlen=KEPT_SAMPLES))

    def find_price(self) -> float | None:
        """Seconds for each byte, at least 0; None where too few steps are known.

        The median of the slopes between each two steps of different kinds, so that no single step
        decides. Source: the Theil-Sen estimator (Sen, JASA 63, 1968).
        """
        if min(len(self.much), len(self.little)) < LEAST_SAMPLES:
            return None
        slopes = [
            (more.seconds - less.seconds) / (more.nbytes - less.nbytes)
            for more in self.much
            for less in self.little
            if more.nbytes - less.nbytes >= LEAST_DIFFERENCE * more.nbytes > 0
        ]
        return max(0.0, statistics.median(slopes)) if slopes else None
