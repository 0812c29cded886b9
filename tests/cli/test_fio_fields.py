"""Samples by the field names of fio: figures that are computed by hand."""

from __future__ import annotations

import pytest

from fxoffload.cli.fio_fields import describe_direction, describe_job
from fxoffload.runtime.measurement.bandwidth import Batch, Round

# Two batches of two transfers of 1000 bytes; they take 1 ms to 4 ms.
BATCHES = [Batch(2e-3, (1e-3, 2e-3)), Batch(6e-3, (4e-3, 3e-3))]


def test_direction() -> None:
    found = describe_direction(BATCHES, 1000)
    clat = found.pop("clat_ns")
    assert found == {
        "io_bytes": 4000,
        "bw_bytes": 500_000,
        "iops": pytest.approx(500.0),
        "runtime": 8,
        "total_ios": 4,
    }
    assert (clat["min"], clat["max"], clat["N"]) == (1_000_000, 4_000_000, 4)
    assert clat["mean"] == pytest.approx(2.5e6)
    assert clat["stddev"] == pytest.approx(1.118e6, rel=1e-3)
    assert clat["percentile"] == {
        "50.000000": 2_000_000,
        "90.000000": 4_000_000,
        "95.000000": 4_000_000,
        "99.000000": 4_000_000,
    }


def test_job() -> None:
    slow = Batch(1.0, (1.0, 1.0))
    job = describe_job("alone", [Round(BATCHES[0], slow)], 1000, 2)
    assert job["jobname"] == "alone"
    assert job["job options"] == {"bs": "1000", "iodepth": "2"}
    assert job["write"]["bw_bytes"] == 1_000_000
    assert job["read"]["bw_bytes"] == 2000
