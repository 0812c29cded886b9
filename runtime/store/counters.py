"""What a store did: the counters while it runs, and the record that a user reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

_PRESENT = ("inflight_bytes", "live_bytes", "host_live_bytes")


@dataclass(slots=True)
class StoreStatistics:
    """Counters of one store, or of several added up.

    A store counts in one of its own, under its lock; what a user gets is a copy as of then.

    Bytes are bytes of values, without the padding that a transfer may add. `inflight_bytes` (being
    written), `live_bytes` and `host_live_bytes` (slots held) are what is true now; all else is a
    sum or a peak since the start or the last reset. The `host_` counters are the host tier's part
    of the counters of all tiers; `host_overflow_bytes` were meant for the host tier, which was
    full, and went to nvme. `checksum_errors` are those of `read_errors` that a digest found.
    `forwarded_bytes` were handed back from memory and crossed no link; `staged_bytes` came back
    over a GPU's bus from a staging buffer, before a drive had them. `pageable_bytes` are those of
    staging buffers for which no pinned memory was to be had; the devices count them. `kept_bytes`
    were not offloaded, as other graphs or the program itself keep them in memory anyway.
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
        """What wears the drives: bytes written to the nvme tier."""
        return self.written_bytes - self.host_written_bytes

    @property
    def nvme_read_bytes(self) -> int:
        """Bytes read from the nvme tier."""
        return self.read_bytes - self.host_read_bytes

    @property
    def nvme_live_bytes(self) -> int:
        """Bytes in slots of the nvme tier."""
        return self.live_bytes - self.host_live_bytes


def reset_sums(counters: StoreStatistics) -> None:
    """Set every sum to zero; what is true now (in flight, live) stays."""
    kept = {name: getattr(counters, name) for name in _PRESENT}
    for field in fields(counters):
        setattr(counters, field.name, kept.get(field.name, field.default))
    counters.peak_inflight_bytes = counters.inflight_bytes


def find_past(record: StoreStatistics) -> StoreStatistics:
    """What stays of `record` when its store is gone: all but what was true at the moment."""
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
