"""The host tier of a GPU by default: half of what is free, divided by the ranks, and said."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fxoffload.runtime.measurement import host_share
from fxoffload.runtime.measurement.host_share import count_local_ranks, find_host_share

GIB = 2**30


@pytest.fixture(autouse=True)
def unknown(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing was chosen before; no launcher told how many ranks there are."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    find_host_share.cache_clear()
    yield
    find_host_share.cache_clear()


def set_available(patch: pytest.MonkeyPatch, nbytes: int) -> None:
    patch.setattr(host_share, "find_available_memory", lambda: nbytes)


def test_half_of_what_is_free_is_taken_once_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_available(monkeypatch, 64 * GIB)
    with caplog.at_level(logging.INFO, logger="fxoffload"):
        assert find_host_share() == 32 * GIB
        set_available(monkeypatch, 8 * GIB)  # Plans and stores must agree.
        assert find_host_share() == 32 * GIB
    (said,) = caplog.messages
    assert said == (
        "host tier: 32.0 GiB, 50 % of the 64.0 GiB of host memory that are available; host_budget "
        "sets another size, 0 is none"
    )


def test_ranks_of_one_machine_divide_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_available(monkeypatch, 64 * GIB)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with caplog.at_level(logging.INFO, logger="fxoffload"):
        assert find_host_share() == 4 * GIB
    assert "divided by 8 ranks on this machine" in caplog.text


@pytest.mark.parametrize(
    ("told", "world", "ranks"), [("4", 16, 4), ("", 16, 16), ("", None, 1), ("none", None, 1)]
)
def test_without_a_launcher_all_ranks_may_be_here(
    told: str, world: int | None, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed: Any = torch.distributed
    monkeypatch.setenv("LOCAL_WORLD_SIZE", told)
    monkeypatch.setattr(distributed, "is_initialized", lambda: world is not None)
    monkeypatch.setattr(distributed, "get_world_size", lambda: world)
    assert count_local_ranks() == ranks
