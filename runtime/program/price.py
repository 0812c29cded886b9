"""Price: estimate the compute time that a transferred byte takes, from whole steps of the run.

On a CPU the cores compute the graph and serve the drive. Steps that move much and steps that move
little, in turns, show how much longer a step computes for each byte. Each step is compared with the
two beside it, as a machine may be slow for a minute.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

# The number of comparisons that are kept, and the least from which a price is estimated.
KEPT_SLOPES = 12
LEAST_SLOPES = 6
# A step that moved much moved at least this part more bytes than one that moved little.
LEAST_DIFFERENCE = 0.2
# The standard error of the median of n normal numbers: this times their median deviation from it,
# by the root of n.
ERROR_OF_MEDIAN = 1.4826 * math.sqrt(math.pi / 2.0)
# Beyond so many standard errors the comparisons contradict a price.
ERRORS = 2.0


class Sample(NamedTuple):
    """One step: its number, bytes written and read, and seconds without those of waiting."""

    step: int
    nbytes: int
    seconds: float


@dataclass(slots=True)
class Samples:
    """The latest three steps, and what steps took for each byte more than those beside them."""

    steps: deque[Sample] = field(default_factory=lambda: deque[Sample](maxlen=3))
    slopes: deque[float] = field(default_factory=lambda: deque[float](maxlen=KEPT_SLOPES))

    def add(self, sample: Sample) -> None:
        """Add the latest step; the one before it is compared if it was one of another kind."""
        self.steps.append(sample)
        slope = _find_slope(list(self.steps))
        if slope is not None:
            self.slopes.append(slope)

    def find_price(self, probed: float) -> float | None:
        """Seconds for each byte, at least 0; None where too few steps are known.

        The `probed` price, or the nearest one that the comparisons do not contradict: on a noisy
        machine a few steps say little, and in a quiet one they say more than the probe does.
        """
        count = len(self.slopes)
        if count < LEAST_SLOPES:
            return None
        middle = statistics.median(self.slopes)
        deviation = statistics.median(abs(slope - middle) for slope in self.slopes)
        error = ERRORS * ERROR_OF_MEDIAN * deviation / math.sqrt(count)
        return max(0.0, min(max(probed, middle - error), middle + error))


def _find_slope(steps: Sequence[Sample]) -> float | None:
    """Seconds of the middle one of three steps for each byte that it moved beyond the others.

    None if they did not follow each other, or if it moved neither more nor less than both.
    """
    if len(steps) < 3 or steps[2].step - steps[0].step != 2:
        return None
    before, middle, after = steps
    most, least = max(before.nbytes, after.nbytes), min(before.nbytes, after.nbytes)
    share = 1.0 - LEAST_DIFFERENCE
    if not (most <= share * middle.nbytes or middle.nbytes <= share * least):
        return None
    if middle.nbytes == most == least:
        return None
    nbytes = middle.nbytes - (before.nbytes + after.nbytes) / 2
    return (middle.seconds - (before.seconds + after.seconds) / 2) / nbytes
