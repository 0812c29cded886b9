"""What a store did: the counters while it runs, and the record that a user reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """Counters of one store, or of several added up.

    Bytes are bytes of values, without the padding that a transfer may add. `inflight_bytes` (being
    written) and `live_bytes` (slots held) are what is true now; all else is a sum or a peak since
    the start or the last reset.
    """

    offloads: int = 0
    offloaded_bytes: int = 0
    written_bytes: int = 0
    read_bytes: int = 0
    forwarded_bytes: int = 0
    deduplicated_bytes: int = 0
    cancelled_bytes: int = 0
    exposed_seconds: float = 0.0
    inflight_bytes: int = 0
    peak_inflight_bytes: int = 0
    live_bytes: int = 0
    write_errors: int = 0
    read_errors: int = 0
    ioengine: str = ""


@dataclass(slots=True)
class Counters:
    """The running counters of one store; changed and read only under that store's lock.

    It has no lock of its own: a finalizer that the garbage collector runs inside a second lock
    could wait for the thread that it interrupted.
    """

    offloads: int = 0
    offloaded_bytes: int = 0
    written_bytes: int = 0
    read_bytes: int = 0
    forwarded_bytes: int = 0
    deduplicated_bytes: int = 0
    cancelled_bytes: int = 0
    exposed_seconds: float = 0.0
    inflight_bytes: int = 0
    peak_inflight_bytes: int = 0
    live_bytes: int = 0
    write_errors: int = 0
    read_errors: int = 0

    def snapshot(self, ioengine: str) -> StoreStatistics:
        """The counters as they stand, as a frozen record."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return StoreStatistics(**values, ioengine=ioengine)

    def reset(self) -> None:
        """Set every sum to zero; what is true now (in flight, live) stays."""
        kept = {"inflight_bytes": self.inflight_bytes, "live_bytes": self.live_bytes}
        for field in fields(self):
            setattr(self, field.name, kept.get(field.name, field.default))
        self.peak_inflight_bytes = self.inflight_bytes


def add_statistics(records: Iterable[StoreStatistics]) -> StoreStatistics:
    """The sum of several records.

    Peaks are added too, which is an upper bound of the common peak. Each ioengine is named once.
    """
    records = tuple(records)
    names = dict.fromkeys(name for record in records for name in record.ioengine.split(", "))
    sums = {
        field.name: sum(getattr(record, field.name) for record in records)
        for field in fields(StoreStatistics)
        if field.name != "ioengine"
    }
    return StoreStatistics(**sums, ioengine=", ".join(filter(None, names)))


def format_bytes(nbytes: float) -> str:
    """`nbytes` for a person: "512 B", "3.2 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TiB"
