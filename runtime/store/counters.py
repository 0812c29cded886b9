"""The statistics of a store: its counters, and their sum over several stores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

_PRESENT = ("inflight_bytes", "live_bytes", "host_live_bytes")


@dataclass(slots=True)
class StoreStatistics:
    """Counters of one store, or the sum over several stores.

    A store changes its own record under its lock; a user gets a copy.

    Bytes are bytes of values, without the padding that a transfer may add. `inflight_bytes` (being
    written), `live_bytes` and `host_live_bytes` (slots in use) are present values; every other
    counter is a sum or a peak since the start or the last reset. The `host_` counters are the part
    of the host tier. `host_overflow_bytes` were written to nvme because the host tier was full.
    `checksum_errors` are the read errors that a digest detected. `forwarded_bytes` were returned
    from memory, without a transfer; `staged_bytes` were copied to a GPU from a staging buffer,
    without a read from a drive. `pageable_bytes` are bytes of staging buffers that could not be
    pinned; the devices count them. `kept_bytes` were not offloaded: the schedule keeps them, or
    another graph or the program holds them in memory anyway.
    """

    offloads: int = 0
    offloaded_bytes: int = 0
    written_bytes: int = 0
    read_bytes: int = 0
    forwarded_bytes: int = 0
    staged_bytes: int = 0
    deduplicated_bytes: int = 0
    kept_bytes: int = 0
    cancelled_bytes: int = 0
    exposed_seconds: float = 0.0
    inflight_bytes: int = 0
    peak_inflight_bytes: int = 0
    live_bytes: int = 0
    write_errors: int = 0
    read_errors: int = 0
    host_written_bytes: int = 0
    host_read_bytes: int = 0
    host_live_bytes: int = 0
    host_overflow_bytes: int = 0
    checksum_errors: int = 0
    pageable_bytes: int = 0
    ioengine: str = ""

    @property
    def nvme_written_bytes(self) -> int:
        """Bytes written to the nvme tier, which wear its drives."""
        return self.written_bytes - self.host_written_bytes


def reset_sums(counters: StoreStatistics) -> None:
    """Set every sum to zero; present values (in flight, live) stay."""
    kept = {name: getattr(counters, name) for name in _PRESENT}
    for field in fields(counters):
        setattr(counters, field.name, kept.get(field.name, field.default))
    counters.peak_inflight_bytes = counters.inflight_bytes


def find_past(record: StoreStatistics) -> StoreStatistics:
    """`record` without its present values, for a store that has been closed."""
    return replace(record, **dict.fromkeys(_PRESENT, 0))


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
