"""Checks of memory: limits that are made up, and those of this machine."""

from __future__ import annotations

from fxoffload.cli.host_checks import check_host, check_locked_memory, check_malloc, check_memory

GIB = 2**30


def test_this_machine() -> None:
    assert [each.subject for each in check_host()] == ["locked memory", "host memory", "malloc"]


def test_locked_memory_matters_to_a_gpu() -> None:
    assert check_locked_memory(None, has_gpu=True).state == "ok"
    assert check_locked_memory(2**16, has_gpu=False).state == "ok"
    short = check_locked_memory(2**16, has_gpu=True)
    assert short.state == "warning"
    assert "memlock" in short.remedy
    assert check_locked_memory(GIB, has_gpu=True).state == "ok"


def test_memory_limit_of_a_container() -> None:
    assert "cgroup" not in check_memory(32 * GIB, 32 * GIB).fact
    limited = check_memory(32 * GIB, 8 * GIB)
    assert limited.state == "ok"
    assert limited.fact == "8.0 GiB by the cgroup, of 32.0 GiB"
    assert check_memory(32 * GIB, 2 * GIB).state == "warning"


def test_malloc() -> None:
    assert check_malloc(None).state == "warning"
    assert "1.0 GiB" in check_malloc(GIB).fact
