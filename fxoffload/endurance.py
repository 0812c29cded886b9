"""Project how long a drive lasts, from its write rating and the bytes that are written."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fxoffload.sizes import parse_endurance

DAY_SECONDS = 86400
YEAR_DAYS = 365.25


@dataclass(frozen=True, slots=True)
class EnduranceProjection:
    """The life of a drive with a write rating of `rating_bytes`; `print` it for a sentence.

    written_bytes, seconds: the load, bytes that are written in that time.
    """

    written_bytes: int
    seconds: float
    rating_bytes: int

    @property
    def days(self) -> float:
        """Days that a new drive lasts at this rate; inf if nothing is written."""
        if self.written_bytes == 0:
            return math.inf
        return self.rating_bytes / self.written_bytes * self.seconds / DAY_SECONDS

    @property
    def years(self) -> float:
        """`days` in years."""
        return self.days / YEAR_DAYS

    def __str__(self) -> str:
        # Decimal units, as in data sheets.
        load = f"{self.written_bytes / 1e9:.1f} GB written in {self.seconds:.1f} s"
        rating = f"a rating of {self.rating_bytes / 1e12:g} TB"
        if self.written_bytes == 0:
            return f"{load}: {rating} is not used up"
        return f"{load}: {rating} lasts {self.days:.1f} days ({self.years:.2f} years) at this rate"


def project_endurance(written_bytes: int, seconds: float, rating: int | str) -> EnduranceProjection:
    """Project the life of a drive from the bytes that a step or a run writes to it.

    written_bytes: of one or more steps, such as `nvme_written_bytes` of the statistics.
    seconds: the time that these steps took, idle time included.
    rating: "600TBW", "1.2PBW" or bytes; raises ConfigError for anything else.
    """
    return EnduranceProjection(written_bytes, seconds, parse_endurance("rating", rating))
