"""Find how much host memory this process may use: a container's limit, or the machine's memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

# Of a cgroup: the folder, the files of its limit and of what is in use, and the line of memory.stat
# that says how much of that the kernel takes back first. Version 2, 2 beside 1, 1.
_PLACES = (
    ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("sys/fs/cgroup/unified", "memory.max", "memory.current", "inactive_file"),
    (
        "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)  # fmt: skip


def find_memory_limit(root: Path = Path("/")) -> int:
    """Bytes of physical memory, or the lowest limit of the cgroups of this process if that is less.

    root: the root of the file system; tests pass another one. Source: cgroups(7).
    """
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *(limit for limit, _ in _find_limits(root))])


def find_available_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can take before the machine or a cgroup swaps or kills.

    Source: MemAvailable in proc_meminfo(5), which counts memory that the page cache can give back;
    of a cgroup, the limit without what is in use, but for pages of files that nobody reads again.
    """
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _read(root / "proc/meminfo"), re.MULTILINE)
    machine = physical if found is None else 1024 * int(found[1])
    return min([machine, *(max(0, limit - used) for limit, used in _find_limits(root))])


def _find_limits(root: Path) -> Iterator[tuple[int, int]]:
    """The limit of each cgroup of this process that has one, and the bytes in use there."""
    for path in _find_cgroups(root):
        for place, *names in _PLACES:
            # A limit also holds for all child cgroups. A container may see its own cgroup as root.
            for folder in (path, *path.parents):
                limit, used = (_read(root / place / folder / name) for name in names[:2])
                if limit.isdigit():  # It may be "max", or "" if there is no such file.
                    yield int(limit), _count_used(used, root / place / folder, names[2])


def _count_used(used: str, folder: Path, reclaimable: str) -> int:
    """Bytes in use by a cgroup, without those of files that the kernel takes back first."""
    found = re.search(rf"^{reclaimable} (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
    return max(0, int(used or 0) - (int(found[1]) if found else 0))


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
