"""Seconds of a transfer: a link from the device to a tier."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Link:
    """A path to a tier: sustained bytes per second each way, and the latency of one transfer.

    Transfers overlap their latencies and queue for the bandwidth. compute_seconds_per_byte is what
    a transfer takes, each way, from the compute beside it: nothing on a GPU, but a CPU's cores do
    both.
    """

    write_bytes_per_second: float
    read_bytes_per_second: float
    latency_seconds: float
    compute_seconds_per_byte: float = 0.0

    def write_seconds(self, nbytes: int) -> float:
        """Seconds for which writing `nbytes` occupies the link."""
        return nbytes / self.write_bytes_per_second

    def read_seconds(self, nbytes: int) -> float:
        """Seconds for which reading `nbytes` occupies the link."""
        return nbytes / self.read_bytes_per_second

    def round_trip_seconds(self, nbytes: int) -> float:
        """Seconds to write `nbytes` and read them back when nothing else uses the link."""
        return 2 * self.latency_seconds + self.write_seconds(nbytes) + self.read_seconds(nbytes)
