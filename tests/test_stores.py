"""The stores of the process: opened, shared, counted and closed."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from op_calls import OPS, fetch, live_bytes, offload
from python_runs import run_python

from fxoffload.config import OffloadConfig
from fxoffload.errors import ConfigError, StoreClosed, StoreError
from fxoffload.runtime import (
    close_stores,
    drive_lifetimes,
    find_store,
    register_store,
    reset_statistics,
    statistics,
    stores,
)


def test_equal_options_share_a_store(config: OffloadConfig) -> None:
    key = register_store(config)
    store = find_store(key)
    assert register_store(config) == key
    assert find_store(key) is store
    store.close()
    assert register_store(config) == key
    assert find_store(key) is not store
    assert not find_store(key).closed


@pytest.mark.parametrize(("available_bytes", "warnings"), [(2**40, 0), (63 * 2**20, 1)])
def test_short_host_memory_is_said_when_the_store_opens(
    config: OffloadConfig,
    available_bytes: int,
    warnings: int,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:
    monkeypatch.setattr(stores, "find_available_memory", lambda: available_bytes)
    for _ in range(2):
        register_store(config)
    assert len(recwarn) == warnings
    for warning in recwarn:
        words = "host_budget allows 64.0 MiB of host memory, of which 63.0 MiB are available"
        assert str(warning.message).startswith(words)


def test_a_store_gets_the_host_tier_of_a_gpu_once(tmp_path: Path) -> None:
    """Options without a host tier: one comes with the first graph of a GPU, and stays."""
    config = OffloadConfig(directory=tmp_path, ioengine="posix")
    key = register_store(config)
    store = find_store(key)
    assert store.host_bytes == 0
    for nbytes in (2**20, 2**30):
        assert register_store(config, host_bytes=nbytes) == key
        assert find_store(key) is store
        assert store.host_bytes == 2**20
        assert store._devices.host_bytes == 2**20
    x = torch.arange(1000.0)
    ticket = store.offload(x, "x", "host", True)
    store.release(ticket, block=True)
    assert torch.equal(store.wait(ticket), x)
    store.free(ticket)
    store.close()
    assert register_store(config) == key
    assert find_store(key).host_bytes == 2**20, "graphs that were compiled before go on"


def test_a_store_is_shared_by_all_budgets(config: OffloadConfig) -> None:
    """One spill file, one set of threads, and the host budget is given out once."""
    others = [
        dataclasses.replace(config, memory_budget=budget, min_bytes=size)
        for budget, size in (("min", 1), ("1GiB", 2))
    ]
    assert len({register_store(each) for each in (config, *others)}) == 1


def test_a_closed_store_still_counts(config: OffloadConfig) -> None:
    key = register_store(config)
    reset_statistics()
    for count in (1, 2, 3):
        x = torch.zeros(100_000)
        ticket = offload(key, x)
        OPS.release(ticket, x)
        assert torch.equal(fetch(ticket, x), x)
        find_store(key).close()
        assert register_store(config) == key
        record = statistics()
        assert (record.offloads, record.written_bytes) == (count, count * 400_000)
        del ticket
    assert (record.live_bytes, record.inflight_bytes) == (0, 0)
    reset_statistics()
    assert statistics().offloads == 0


def test_lifetime_of_the_drives(config: OffloadConfig) -> None:
    config = dataclasses.replace(config, endurance="1TBW")
    before = drive_lifetimes()
    key = register_store(config)
    x = torch.zeros(100_000)
    tickets = [offload(key, x, tier) for tier in ("nvme", *sorted(find_store(key).engines))]
    for ticket in tickets:
        OPS.release(ticket, x)
    written = 400_000 * sum(tier != "host" for tier in ("nvme", *find_store(key).engines))
    (projection,) = drive_lifetimes()[len(before) :]
    assert projection.written_bytes == written
    assert projection.rating_bytes == 10**12
    assert 0 < projection.seconds < 60
    assert projection.days == pytest.approx(10**12 / written * projection.seconds / 86400)
    assert "a rating of 1 TB lasts" in str(projection)
    rating, start = stores._wear[key]
    stores._wear[key] = rating, start - 1000
    (projection,) = drive_lifetimes()[len(before) :]
    assert projection.seconds > 1000
    reset_statistics()
    (projection,) = drive_lifetimes()[len(before) :]
    assert projection.written_bytes == 0
    assert projection.seconds < 1000
    del tickets, ticket


def test_a_rating_counts_from_the_opening_of_its_store(config: OffloadConfig) -> None:
    """A later configuration may give the rating. A store that cannot be opened has none."""
    rated = dataclasses.replace(config, endurance="1TBW")
    before = len(drive_lifetimes())
    missing = dataclasses.replace(rated, directory="/nowhere", ioengine="posix")
    with pytest.raises(ConfigError, match="does not exist"):
        register_store(missing)
    assert len(drive_lifetimes()) == before
    key = register_store(config)
    start = stores._wear[key][1]
    assert len(drive_lifetimes()) == before
    assert register_store(rated) == key
    assert stores._wear[key] == (10**12, start)
    assert len(drive_lifetimes()) == before + 1
    find_store(key).close()
    register_store(rated)
    assert stores._wear[key][1] > start, "a new store has written nothing yet"


def test_an_unknown_store_is_named() -> None:
    with pytest.raises(StoreError, match="store 'nowhere' is not open in this process"):
        offload("nowhere", torch.zeros(1))


def test_statistics_of_the_process(key: str) -> None:
    reset_statistics()
    x = torch.zeros(100_000)
    ticket = OPS.offload(x, key, "value", "nvme", True, 7)
    OPS.release(ticket, x)
    record = statistics()
    assert (record.offloads, record.offloaded_bytes, record.deduplicated_bytes) == (1, 400_000, 7)
    reset_statistics()
    assert statistics().offloads == 0
    assert statistics().live_bytes >= 400_000


def test_nothing_is_visible_in_the_directory(key: str, tmp_path: Path) -> None:
    x = torch.zeros(100_000)
    ticket = offload(key, x)
    OPS.release(ticket, x)
    assert list(tmp_path.iterdir()) == []
    del ticket


def test_close_stores(config: OffloadConfig) -> None:
    before = set(os.listdir("/proc/self/fd"))
    key = register_store(config)
    x = torch.zeros(100_000)
    ticket = offload(key, x)
    OPS.release(ticket, x)
    close_stores()
    assert set(os.listdir("/proc/self/fd")) <= before
    with pytest.raises(StoreClosed, match="value: the store is closed"):
        fetch(ticket, x)
    del ticket
    assert live_bytes(key) == 0


SCRIPT = """
import os, sys, torch
from fxoffload.config import OffloadConfig
from fxoffload.runtime import register_store
key = register_store(OffloadConfig(directory=sys.argv[1]))
x = torch.zeros(1_000_000)
ticket = torch.ops.fxoffload.offload(x, key, "value", "nvme", True, 0)
if sys.argv[2] == "fork":
    child = os.fork()
    if child == 0:
        try:
            torch.ops.fxoffload.offload(x, key, "value", "nvme", True, 0)
        except Exception as error:
            print(type(error).__name__, error)
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("mode", ["plain", "fork"])
def test_the_process_ends_with_values_in_flight(tmp_path: Path, mode: str) -> None:
    run = run_python("-c", SCRIPT, tmp_path, mode)
    assert run.stderr == ""
    assert ("is not open in this process" in run.stdout) is (mode == "fork")
    assert list(tmp_path.iterdir()) == []
