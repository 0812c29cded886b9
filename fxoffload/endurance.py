"""How long a drive lasts under a load: its write rating against the bytes that are written."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fxoffload.sizes import parse_endurance

DAY_SECONDS = 86400
YEAR_DAYS = 365.25


@dataclass(frozen=True, slots=True)
class EnduranceProjection:
    """`written_bytes` in `seconds`, and a drive that may take `rating_bytes`; print it."""

    written_bytes: int
    seconds: float
    rating_bytes: int

    @property
    def days(self) -> float:
        """How long a new drive lasts if it goes on like this; inf when nothing is written."""
        if self.written_bytes == 0:
            return math.inf
        return self.rating_bytes / self.written_bytes * self.seconds / DAY_SECONDS

    @property
    def years(self) -> float:
        """As `days`."""
        return self.days / YEAR_DAYS

    def __str__(self) -> str:
        # Decimal units, as in data sheets.
        load = f"{self.written_bytes / 1e9:.1f} GB written in {self.seconds:.1f} s"
        rating = f"a rating of {self.rating_bytes / 1e12:g} TB"
        if self.written_bytes == 0:
            return f"{load}: {rating} is not used up"
        return f"{load}: {rating} lasts {self.days:.1f} days ({self.years:.2f} years) at this rate"


def project_endurance(written_bytes: int, seconds: float, rating: int | str) -> EnduranceProjection:
    """Project the life of a drive from what a step, or a run, writes to it.

    written_bytes: of a step or of many, as `nvme_written_bytes` of the statistics.
    seconds: what that took, idle times included.
    rating: "600TBW", "1.2PBW" or bytes; ConfigError for what is none of these.
    """
    return EnduranceProjection(written_bytes, seconds, parse_endurance("rating", rating))
