"""The memory limit of a process: that of its cgroups, in each version, or the machine's memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fxoffload.runtime.engines.memory_limit import find_available_memory, find_memory_limit

PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("", {}, PHYSICAL),
        ("0::/a/b", {"a/b/memory.max": "1000", "a/memory.max": "max"}, 1000),
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "2000"}, 2000),
        ("0::/a", {"a/memory.max": "max"}, PHYSICAL),
        ("0::/", {"memory.max": "3000"}, 3000),
        ("4:cpu,memory:/a\n0::/", {"memory/a/memory.limit_in_bytes": "4000"}, 4000),
        # A container of version 1 sees its own cgroup at the place of the uppermost.
        ("4:memory:/docker/7\n1:cpu:/", {"memory/memory.limit_in_bytes": "5000"}, 5000),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, PHYSICAL),
        ("1:cpu:/a\n0::/b", {"a/memory.max": "1", "unified/b/memory.max": "6000"}, 6000),
    ],
)
def test_limit(cgroup: str, files: dict[str, str], expected: int, tmp_path: Path) -> None:
    if cgroup:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(f"{cgroup}\n")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    assert find_memory_limit(tmp_path) == expected


def test_limit_of_this_process() -> None:
    assert 0 < find_memory_limit() <= PHYSICAL


@pytest.mark.parametrize(
    ("known", "expected"), [("MemFree: 1 kB\nMemAvailable:    7 kB\n", 7168), ("", PHYSICAL)]
)
def test_available_memory(known: str, expected: int, tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(known)
    assert find_available_memory(tmp_path) == expected
    cgroup = tmp_path / "sys/fs/cgroup/memory.max"
    cgroup.parent.mkdir(parents=True)
    cgroup.write_text("5000\n")
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    assert find_available_memory(tmp_path) == 5000


@pytest.mark.parametrize(
    ("folder", "names", "line"),
    [
        ("", ("memory.max", "memory.current"), "inactive_file"),
        ("memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"),
    ],
)
def test_what_a_cgroup_uses_is_not_available(
    folder: str, names: tuple[str, str], line: str, tmp_path: Path
) -> None:
    """But for the page cache, which the kernel takes back first."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{'4:memory' if folder else '0:'}:/a\n")
    cgroup = tmp_path / "sys/fs/cgroup" / folder / "a"
    cgroup.mkdir(parents=True)
    (cgroup / names[0]).write_text("5000\n")
    (cgroup / names[1]).write_text("4000\n")
    assert find_available_memory(tmp_path) == 1000
    (cgroup / "memory.stat").write_text(f"anon 2000\n{line} 1500\nactive_file 500\n")
    assert find_available_memory(tmp_path) == 2500
    (cgroup / names[1]).write_text("9000\n")
    assert find_available_memory(tmp_path) == 0
    assert find_memory_limit(tmp_path) == 5000


def test_available_memory_of_this_machine() -> None:
    assert 0 < find_available_memory() <= find_memory_limit()
