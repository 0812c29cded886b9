"""Find how much host memory this process may use: a container's limit, or the machine's memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

# Folder and file of a cgroup's memory limit: version 2, version 2 beside version 1, version 1.
_PLACES = (
    ("sys/fs/cgroup", "memory.max"),
    ("sys/fs/cgroup/unified", "memory.max"),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes"),
)


def find_memory_limit(root: Path = Path("/")) -> int:
    """Bytes of physical memory, or the lowest limit of the cgroups of this process if that is less.

    root: the root of the file system; tests pass another one. Source: cgroups(7).
    """
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_find_limits(root)])


def find_available_memory(root: Path = Path("/")) -> int:
    """Bytes that programs can take before the machine swaps or kills, but no more than the limit.

    Source: MemAvailable in proc_meminfo(5), which counts memory that the page cache can give back.
    """
    limit = find_memory_limit(root)
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _read(root / "proc/meminfo"), re.MULTILINE)
    return limit if found is None else min(limit, 1024 * int(found[1]))


def _find_limits(root: Path) -> Iterator[int]:
    for path in _find_cgroups(root):
        for place, name in _PLACES:
            # A limit also holds for all child cgroups. A container may see its own cgroup as root.
            for folder in (path, *path.parents):
                limit = _read(root / place / folder / name)
                if limit.isdigit():  # It may be "max", or "" if there is no such file.
                    yield int(limit)


def _find_cgroups(root: Path) -> Iterator[Path]:
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            yield Path(path.lstrip("/"))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # The system has no cgroups, or none of this version.
        return ""
