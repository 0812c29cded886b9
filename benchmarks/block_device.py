"""Reads how many bytes were written to a block device, and by this process."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

# The unit of the kernel's counters, whatever the device's own sectors are.
_SECTOR_BYTES = 512
_SECTORS_WRITTEN = 6  # The field of a device's stat.


class DeviceUnknown(Exception):
    """A directory is on no block device with a counter; the message gives the reason."""


class BlockDevice:
    """The block device, or the partition, that holds `directory`."""

    def __init__(self, directory: Path, system: Path = Path("/sys/dev/block")) -> None:
        number = os.stat(directory).st_dev
        self._stat = system / f"{os.major(number)}:{os.minor(number)}" / "stat"
        try:
            self.name = self._stat.parent.resolve().name
            self.read_written_bytes()
        except OSError as error:
            raise DeviceUnknown(
                f"{directory}: no counter of a block device can be read ({error}); btrfs, "
                "overlay and network file systems stand on no single device"
            ) from error

    def read_written_bytes(self) -> int:
        """Bytes that all processes have written since the system started."""
        return int(self._stat.read_text().split()[_SECTORS_WRITTEN]) * _SECTOR_BYTES


def read_process_written_bytes() -> int | None:
    """Bytes that this process sent to storage; None where the kernel does not count them."""
    try:
        text = Path("/proc/self/io").read_text()
    except OSError:
        return None
    match = re.search(r"^write_bytes: (\d+)$", text, re.MULTILINE)
    return None if match is None else int(match[1])


def count_round(
    device: BlockDevice, write: Callable[[], None], pause_seconds: float
) -> dict[str, Any]:
    """Count the bytes written during `write()`, and during a pause before and after it.

    The counts of the pauses are the bytes that other processes write.
    """
    marks, counts = [device.read_written_bytes()], [read_process_written_bytes()]
    for work in (partial(time.sleep, pause_seconds), write, partial(time.sleep, pause_seconds)):
        work()
        marks.append(device.read_written_bytes())
        counts.append(read_process_written_bytes())
    before, during, after = (end - start for start, end in pairwise(marks))
    _, start, end, _ = counts
    return {
        "process_bytes": None if start is None or end is None else end - start,
        "device_bytes": during,
        "pause_bytes": (before, after),
        "pause_seconds": pause_seconds,
    }
