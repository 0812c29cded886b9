"""Reads how many bytes were written to a block device, and by this process."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

# The unit of the kernel's counters, whatever the device's own sectors are.
_SECTOR_BYTES = 512
_SECTORS_WRITTEN = 6  # The field of a device's stat.


class DeviceUnknown(Exception):
    """No block device with a counter stands behind a directory; the message says why."""


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
        """Bytes written by everyone since the system started."""
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
    """What was counted while `write()` ran, and in a pause before and one after.

    In the pauses the device counts what others write.
    """
    marks = [device.read_written_bytes()]
    time.sleep(pause_seconds)
    marks.append(device.read_written_bytes())
    before_bytes = read_process_written_bytes()
    write()
    after_bytes = read_process_written_bytes()
    marks.append(device.read_written_bytes())
    time.sleep(pause_seconds)
    marks.append(device.read_written_bytes())
    before, during, after = (end - start for start, end in pairwise(marks))
    process_bytes = None
    if before_bytes is not None and after_bytes is not None:
        process_bytes = after_bytes - before_bytes
    return {
        "process_bytes": process_bytes,
        "device_bytes": during,
        "pause_bytes": (before, after),
        "pause_seconds": pause_seconds,
    }
