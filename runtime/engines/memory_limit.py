"""How much host memory this process may use: a container's limit, or all that the machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Where the kernel shows memory cgroups: version 2, version 2 beside version 1, and version 1.
_PLACES = (
    ("sys/fs/cgroup", "memory.max"),
    ("sys/fs/cgroup/unified", "memory.max"),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes"),
)


def find_memory_limit(root: Path = Path("/")) -> int:
    """The physical memory in bytes, or the least limit of the cgroups that this process is in.

    root: of the file system; another one in tests. Source: cgroups(7).
    """
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_find_limits(root)])


def _find_limits(root: Path) -> Iterator[int]:
    for path in _find_cgroups(root):
        for place, name in _PLACES:
            # A limit holds for all cgroups below; a container may see its own as the uppermost.
            for folder in (path, *path.parents):
                limit = _read(root / place / folder / name)
                if limit.isdigit():  # Else "max", or no such file.
                    yield int(limit)


def _find_cgroups(root: Path) -> Iterator[Path]:
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            yield Path(path.lstrip("/"))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # There are no cgroups, or not of this version.
        return ""
