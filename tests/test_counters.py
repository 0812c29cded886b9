"""Tests of the statistics counters, their snapshots and sums."""

from __future__ import annotations

from dataclasses import fields

from fxoffload.runtime.store.counters import StoreStatistics, add_statistics, find_past, reset_sums


def test_reset_keeps_what_is_true_now() -> None:
    counters = StoreStatistics(*range(1, len(fields(StoreStatistics))))
    counters.inflight_bytes, counters.live_bytes, counters.host_live_bytes = 5, 7, 3
    reset_sums(counters)
    assert counters == StoreStatistics(
        inflight_bytes=5, peak_inflight_bytes=5, live_bytes=7, host_live_bytes=3
    )
    assert isinstance(counters.exposed_seconds, float)


def test_sum_of_records() -> None:
    one = StoreStatistics(offloads=1, exposed_seconds=0.5, ioengine="posix direct, memory")
    two = StoreStatistics(offloads=2, exposed_seconds=0.25, live_bytes=3, ioengine="memory")
    assert add_statistics([one, two]) == StoreStatistics(
        offloads=3, exposed_seconds=0.75, live_bytes=3, ioengine="posix direct, memory"
    )
    assert add_statistics([]) == StoreStatistics()


def test_drives_are_worn_by_what_host_memory_did_not_take() -> None:
    assert StoreStatistics(written_bytes=10, host_written_bytes=1).nvme_written_bytes == 9


def test_what_is_past_holds_nothing() -> None:
    record = StoreStatistics(*range(1, len(fields(StoreStatistics))), ioengine="memory")
    past = find_past(record)
    assert past.inflight_bytes == past.live_bytes == past.host_live_bytes == 0
    changed = {f.name for f in fields(record) if getattr(past, f.name) != getattr(record, f.name)}
    assert changed == {"inflight_bytes", "live_bytes", "host_live_bytes"}
