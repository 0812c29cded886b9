"""What the passes are told of this machine: speed, links, and what transfers take from compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import toys
from torch._subclasses import FakeTensorMode
from toys import Sketch, aten

from fxoffload import runtime
from fxoffload.config import OffloadConfig
from fxoffload.cost import make_cost_model
from fxoffload.hardware import Hardware
from fxoffload.machine import (
    GPU_COPY_LATENCY_SECONDS,
    GPU_TRANSFER_LATENCY_SECONDS,
    TRANSFER_LATENCY_SECONDS,
    find_compute_device,
    find_device_limit,
    find_host_bytes,
    find_links,
    find_nominal_cost,
    find_room,
    measure_cost,
    measure_links,
)
from fxoffload.planner.link import Link


def test_transfers_take_from_compute_on_a_cpu_and_cross_a_bus_to_a_gpu(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = OffloadConfig(directory=spill_directory, ioengine="posix", host_budget="1MiB")
    monkeypatch.setattr(runtime, "recall_contention", lambda _: runtime.Contention(2e-10, 4e-10))
    monkeypatch.setattr(runtime, "recall_speed", lambda *_: runtime.Speed(1.0, 2.0))
    links = measure_links(config)
    graph = toys.make_chain(2)
    torch_threads = torch.get_num_threads()
    cost = measure_cost(config, graph)
    assert {tier: link.compute_seconds_per_byte for tier, link in cost.links.items()} == {
        "nvme": pytest.approx(3e-10),
        "host": pytest.approx(3e-10),
    }
    assert cost.speed.mask_store_seconds > cost.speed.mask_load_seconds > 0.0
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4 * torch_threads)
    faster = measure_cost(config, graph).speed
    assert faster.mask_store_seconds == pytest.approx(cost.speed.mask_store_seconds / 4)
    assert faster.mask_load_seconds == pytest.approx(cost.speed.mask_load_seconds / 4)
    assert cost.links["nvme"].read_bytes_per_second == links["nvme"].read_bytes_per_second
    for node in graph.forward.graph.nodes:
        node.meta["val"] = FakeOnCuda()
    monkeypatch.setattr(runtime, "recall_exchange", lambda _: runtime.Bandwidth(1e3, 1e12))
    on_gpu = measure_cost(config, graph)
    assert on_gpu.mask_seconds(10**9, 10**9) == 0.0
    read = links["nvme"].read_bytes_per_second
    # A GPU's own copies fill host memory: how fast the host copies does not matter.
    assert on_gpu.links == {
        "nvme": Link(1e3, read, GPU_TRANSFER_LATENCY_SECONDS, 0.0, 1e3, 1e12),
        "host": Link(1e3, 1e12, GPU_COPY_LATENCY_SECONDS, 0.0, 1e3, 1e12),
    }


class FakeOnCuda(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)


def refuse(*_: object) -> None:
    raise AssertionError("something is measured")


def test_stated_hardware_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("a probe ran")

    for probe in ("recall_contention", "recall_speed", "choose_engine", "probe_memory"):
        monkeypatch.setattr(runtime, probe, refuse)
    hardware = replace(Hardware(**toys.HARDWARE), host_link_bytes_per_second=2.5e9)
    config = OffloadConfig(hardware=hardware, host_budget="1MiB")
    cost = measure_cost(config, toys.make_chain(2))
    assert cost == make_cost_model(hardware, with_host_tier=True)
    assert find_links(config, torch.device("cpu")) == {
        "nvme": Link(2e9, 2.5e9, 0.0), "host": Link(2.5e9, 2.5e9, 0.0),
    }  # fmt: skip


@pytest.mark.parametrize("on_gpu", [False, True])
def test_nominal_numbers_are_not_measured(on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank has the same; links of a tier that there is not are left out."""
    for name in ("choose_engine", "probe_memory", "recall_speed", "recall_exchange"):
        monkeypatch.setattr(runtime, name, refuse)
    graph = toys.make_chain(2)
    if on_gpu:
        for node in graph.forward.graph.nodes:
            node.meta["val"] = FakeOnCuda()
    cost = find_nominal_cost(["nvme"], graph)
    both = find_nominal_cost(["nvme", "host"], graph)
    assert cost.links == {"nvme": both.links["nvme"]}
    assert both.links["host"].round_trip_seconds(2**30) < both.links["nvme"].round_trip_seconds(
        2**30
    )
    assert cost.speed == both.speed
    assert (cost.speed.flops_per_second > 1e14) is on_gpu


def test_speed_is_that_at_the_dtype_of_the_first_product(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sketch = Sketch()
    x = sketch.forward.input("x", torch.empty(16, 16))
    low = sketch.forward.call(aten._to_copy.default, x, dtype=torch.bfloat16)
    out = sketch.forward.call(aten.mm.default, low, low)
    last = sketch.forward.call(aten._to_copy.default, out, dtype=torch.float64)
    gradient = sketch.backward.input("tangents_1", torch.empty(16, 16))
    graph = sketch.finish([sketch.forward.call(aten.mm.default, last, last)], [gradient])
    asked: list[tuple[torch.device, torch.dtype]] = []

    def recall(device: torch.device, dtype: torch.dtype) -> runtime.Speed:
        asked.append((device, dtype))
        return runtime.Speed(1.0, 2.0)

    monkeypatch.setattr(runtime, "recall_speed", recall)
    monkeypatch.setattr(runtime, "recall_contention", lambda _: runtime.Contention(0.0, 0.0))
    config = OffloadConfig(directory=spill_directory, ioengine="posix")
    measure_cost(config, graph)
    assert asked == [(torch.device("cpu"), torch.bfloat16)]


@pytest.mark.parametrize(
    ("options", "tiers"),
    [
        ({"ioengine": "posix"}, {"nvme"}),
        ({"ioengine": "posix", "host_budget": "1MiB"}, {"nvme", "host"}),
        ({"ioengine": "memory", "host_budget": "1MiB"}, {"nvme"}),  # Both would be the same.
    ],
)
def test_tiers_have_links(
    options: dict[str, Any], tiers: set[str], spill_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {"engine": runtime.Bandwidth(1e9, 2e9), "memory": runtime.Bandwidth(3e9, 4e9)}
    chosen = SimpleNamespace(bandwidth=speeds["engine"])
    monkeypatch.setattr(runtime, "choose_engine", lambda _: chosen)
    monkeypatch.setattr(runtime, "probe_memory", lambda: speeds["memory"])
    links = measure_links(OffloadConfig(directory=spill_directory, **options))
    assert links.keys() == tiers
    assert links["nvme"] == Link(1e9, 2e9, TRANSFER_LATENCY_SECONDS)
    assert "host" not in tiers or links["host"] == Link(3e9, 4e9, TRANSFER_LATENCY_SECONDS)


@pytest.mark.parametrize(
    ("option", "limit", "room"),
    [(None, None, None), (1000, 1000, 600), ("25%", 500, 100), (300, 300, 0)],
)
def test_limit_of_a_device(
    option: Any, limit: int | None, room: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less what is on the device now, of this process and of others."""
    monkeypatch.setattr(runtime, "find_device_bytes", lambda _: 2000)
    monkeypatch.setattr(runtime, "count_live_bytes", lambda _: 350)
    monkeypatch.setattr(runtime, "count_foreign_bytes", lambda _: 50)
    config = OffloadConfig(directory=".", device_memory=option)
    assert config.is_limited is (option is not None)
    assert find_device_limit(config, torch.device("cpu")) == limit
    assert find_room(config, torch.device("cpu")) == room


@pytest.mark.parametrize(
    ("device", "options", "host_bytes"),
    [
        ("cuda", {}, 5000),
        ("cuda", {"host_budget": 300}, 300),
        ("cuda", {"host_budget": 0}, 0),
        ("cuda", {"ioengine": "memory"}, 0),  # Everything is in host memory.
        ("cuda", {"hardware": toys.HARDWARE}, 0),  # Its plans depend on no measurement.
        ("cpu", {}, 0),
    ],
)
def test_a_gpu_has_a_host_tier_by_default(
    device: str, options: dict[str, Any], host_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is as fast as the bus, and of the size that this process may take."""
    speed = runtime.Bandwidth(1e9, 2e9)
    monkeypatch.setattr(runtime, "choose_engine", lambda _: SimpleNamespace(bandwidth=speed))
    monkeypatch.setattr(runtime, "probe_memory", lambda: speed)
    monkeypatch.setattr(runtime, "recall_contention", lambda _: runtime.Contention(0.0, 0.0))
    monkeypatch.setattr(runtime, "recall_exchange", lambda _: runtime.Bandwidth(5e9, 6e9))
    monkeypatch.setattr(runtime, "find_host_share", lambda: 5000)
    config = OffloadConfig(directory=".", **options)
    links = find_links(config, torch.device(device))
    assert find_host_bytes(config, links) == host_bytes
    assert ("host" in links) is (host_bytes > 0)
    if host_bytes:
        assert links["host"] == Link(5e9, 6e9, GPU_COPY_LATENCY_SECONDS, 0.0, 5e9, 6e9)


def test_all_ranks_choose_cuts_by_one_size_of_the_host_tier(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "find_host_share", refuse)
    config = OffloadConfig(directory=".")
    assert find_host_bytes(config, ["nvme", "host"], is_nominal=True) == 64 * 2**30
    assert find_host_bytes(config, ["nvme"], is_nominal=True) == 0
    assert find_host_bytes(replace(config, host_budget=7), ["host"], is_nominal=True) == 7


@pytest.mark.parametrize(
    ("devices", "found"),
    [
        (["cpu", "cuda:1"], "cuda:1"),
        (["cuda:0", "cuda:1"], "cuda:0"),
        (["cpu"], "cpu"),
        ([], "cpu"),
    ],
)
def test_a_graph_computes_on_the_gpu_among_its_inputs(devices: list[str], found: str) -> None:
    """Also if the first input is a number in host memory."""
    with FakeTensorMode():
        inputs = [torch.empty(2, device=device) for device in devices]
    assert find_compute_device([3, *inputs]) == torch.device(found)
