"""The cap on the bytes in flight: on those being written, and on those being read ahead."""

from __future__ import annotations

LEAST_CAP_BYTES = 4 * 2**30
# Each way, one value on its way, one that has arrived and is not used or released yet, and the next
# one, so that the link does not rest between them.
LARGEST_VALUES = 3


def find_inflight_cap(stated_bytes: int | None, largest_bytes: int) -> int:
    """The cap in bytes: `stated_bytes`, else 4 GiB, or more where values are large.

    largest_bytes: of the largest value that may move; three of them may be in flight at once.
    """
    if stated_bytes is not None:
        return stated_bytes
    return max(LEAST_CAP_BYTES, LARGEST_VALUES * largest_bytes)
