"""What the passes are told of this machine: speed, links, and what transfers take from compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toys

from fxoffload import runtime
from fxoffload.config import OffloadConfig
from fxoffload.cost import Link
from fxoffload.planning import (
    GPU_COPY_LATENCY_SECONDS,
    GPU_TRANSFER_LATENCY_SECONDS,
    measure_cost,
    measure_links,
)


def test_transfers_take_from_compute_on_a_cpu_and_cross_a_bus_to_a_gpu(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = OffloadConfig(directory=spill_directory, ioengine="posix", host_budget="1MiB")
    monkeypatch.setattr(runtime, "recall_contention", lambda _: runtime.Contention(2e-10, 4e-10))
    monkeypatch.setattr(runtime, "recall_speed", lambda *_: runtime.Speed(1.0, 2.0))
    links = measure_links(config)
    graph = toys.make_chain(2)
    cost = measure_cost(config, links, graph)
    assert {tier: link.compute_seconds_per_byte for tier, link in cost.links.items()} == {
        "nvme": pytest.approx(3e-10),
        "host": pytest.approx(3e-10),
    }
    assert cost.links["nvme"].read_bytes_per_second == links["nvme"].read_bytes_per_second
    for node in graph.forward.graph.nodes:
        node.meta["val"] = FakeOnCuda()
    monkeypatch.setattr(runtime, "recall_exchange", lambda _: runtime.Bandwidth(1e3, 1e12))
    on_gpu = measure_cost(config, links, graph).links
    read = links["nvme"].read_bytes_per_second
    # A GPU's own copies fill host memory: how fast the host copies does not matter.
    assert on_gpu == {
        "nvme": Link(1e3, read, GPU_TRANSFER_LATENCY_SECONDS),
        "host": Link(1e3, 1e12, GPU_COPY_LATENCY_SECONDS),
    }


class FakeOnCuda(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)
