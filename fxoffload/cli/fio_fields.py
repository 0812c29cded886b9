"""Samples of transfers as records with the field names of fio's JSON.

Source: the section "JSON output" of fio's documentation: `bw_bytes` in bytes per second, `runtime`
in milliseconds, `clat_ns` from the start of a transfer to its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fxoffload.runtime.measurement.bandwidth import Batch, Round

PERCENTILES = (50.0, 90.0, 95.0, 99.0)


def describe_job(name: str, rounds: Sequence[Round], nbytes: int, depth: int) -> dict[str, Any]:
    """A job of fio. nbytes: of each transfer. depth: transfers that are started together."""
    return {
        "jobname": name,
        "job options": {"bs": str(nbytes), "iodepth": str(depth)},
        "write": describe_direction([each.write for each in rounds], nbytes),
        "read": describe_direction([each.read for each in rounds], nbytes),
    }


def describe_direction(batches: Sequence[Batch], nbytes: int) -> dict[str, Any]:
    """The transfers of one direction; their pauses between batches do not count as run time."""
    latencies = np.array([each for batch in batches for each in batch.latencies_seconds]) * 1e9
    seconds = sum(batch.seconds for batch in batches)
    total = len(latencies)
    places = np.percentile(latencies, PERCENTILES, method="inverted_cdf")
    return {
        "io_bytes": total * nbytes,
        "bw_bytes": round(total * nbytes / seconds),
        "iops": total / seconds,
        "runtime": round(seconds * 1e3),
        "total_ios": total,
        "clat_ns": {
            "min": round(float(latencies.min())),
            "max": round(float(latencies.max())),
            "mean": float(latencies.mean()),
            "stddev": float(latencies.std()),
            "N": total,
            "percentile": {
                f"{share:.6f}": round(float(place))
                for share, place in zip(PERCENTILES, places, strict=True)
            },
        },
    }
