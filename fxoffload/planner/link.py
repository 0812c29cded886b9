"""Links: how long transfers between the device and a tier take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

from fxoffload.schedule import LEAST_FLOW_BYTES, Flow, TierFlow


@dataclass(frozen=True, slots=True)
class Link:
    """A path to a tier: sustained bytes per second each way, and the latency of one transfer.

    Transfers overlap their latencies and queue for the bandwidth. compute_seconds_per_byte is what
    a transfer takes, each way, from the compute beside it: nothing on a GPU, but a CPU's cores do
    both. The maxima are the bandwidth of the path to the tier, such as a GPU's bus.
    """

    write_bytes_per_second: float
    read_bytes_per_second: float
    latency_seconds: float
    compute_seconds_per_byte: float = 0.0
    max_write_bytes_per_second: float = inf
    max_read_bytes_per_second: float = inf

    def write_seconds(self, nbytes: int) -> float:
        """Seconds for which writing `nbytes` occupies the link."""
        return nbytes / self.write_bytes_per_second

    def read_seconds(self, nbytes: int) -> float:
        """Seconds for which reading `nbytes` occupies the link."""
        return nbytes / self.read_bytes_per_second

    def round_trip_seconds(self, nbytes: int) -> float:
        """Seconds to write `nbytes` and read them back when nothing else uses the link."""
        return 2 * self.latency_seconds + self.write_seconds(nbytes) + self.read_seconds(nbytes)

    def correct(self, flow: TierFlow, price: float | None = None) -> Link:
        """The link with the speeds that were seen; a direction that moved little keeps its own.

        price: seconds of compute that each byte took, if that is known; it does not change a link
        that takes nothing from compute.
        """
        write = find_speed(flow.write, self.latency_seconds) or self.write_bytes_per_second
        read = find_speed(flow.read, self.latency_seconds) or self.read_bytes_per_second
        return replace(
            self,
            write_bytes_per_second=min(write, self.max_write_bytes_per_second),
            read_bytes_per_second=min(read, self.max_read_bytes_per_second),
            compute_seconds_per_byte=(
                self.compute_seconds_per_byte
                if price is None or not self.compute_seconds_per_byte
                else price
            ),
        )


def find_speed(flow: Flow, latency_seconds: float) -> float | None:
    """Bytes per second of `flow`; None where it is too small to tell.

    A period has the latency of one transfer in it, but not more than half of it is taken for that.
    """
    if flow.nbytes < LEAST_FLOW_BYTES or flow.seconds <= 0.0:
        return None
    return flow.nbytes / max(flow.seconds - flow.periods * latency_seconds, flow.seconds / 2)
