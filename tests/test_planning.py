"""What the passes are told of this machine: speed, links, and what transfers take from compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toys
from toys import Sketch, aten, names_of

from fxoffload import runtime
from fxoffload.config import OffloadConfig
from fxoffload.graph import TrainingGraph
from fxoffload.machine import (
    GPU_COPY_LATENCY_SECONDS,
    GPU_TRANSFER_LATENCY_SECONDS,
    measure_cost,
    measure_links,
)
from fxoffload.passes import PassOptions, find_order, hoist_saved, make_plan
from fxoffload.planner.link import Link
from fxoffload.planning import _restore_order


def test_transfers_take_from_compute_on_a_cpu_and_cross_a_bus_to_a_gpu(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = OffloadConfig(directory=spill_directory, ioengine="posix", host_budget="1MiB")
    monkeypatch.setattr(runtime, "recall_contention", lambda _: runtime.Contention(2e-10, 4e-10))
    monkeypatch.setattr(runtime, "recall_speed", lambda *_: runtime.Speed(1.0, 2.0))
    links = measure_links(config)
    graph = toys.make_chain(2)
    torch_threads = torch.get_num_threads()
    cost = measure_cost(config, links, graph)
    assert {tier: link.compute_seconds_per_byte for tier, link in cost.links.items()} == {
        "nvme": pytest.approx(3e-10),
        "host": pytest.approx(3e-10),
    }
    assert cost.speed.mask_store_seconds > cost.speed.mask_load_seconds > 0.0
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4 * torch_threads)
    faster = measure_cost(config, links, graph).speed
    assert faster.mask_store_seconds == pytest.approx(cost.speed.mask_store_seconds / 4)
    assert faster.mask_load_seconds == pytest.approx(cost.speed.mask_load_seconds / 4)
    assert cost.links["nvme"].read_bytes_per_second == links["nvme"].read_bytes_per_second
    for node in graph.forward.graph.nodes:
        node.meta["val"] = FakeOnCuda()
    monkeypatch.setattr(runtime, "recall_exchange", lambda _: runtime.Bandwidth(1e3, 1e12))
    on_gpu = measure_cost(config, links, graph)
    assert on_gpu.mask_seconds(10**9, 10**9) == 0.0
    read = links["nvme"].read_bytes_per_second
    # A GPU's own copies fill host memory: how fast the host copies does not matter.
    assert on_gpu.links == {
        "nvme": Link(1e3, read, GPU_TRANSFER_LATENCY_SECONDS),
        "host": Link(1e3, 1e12, GPU_COPY_LATENCY_SECONDS),
    }


def make_late() -> TrainingGraph:
    """What is saved of `tall` is computed at the end, and keeps it until then."""
    sketch = Sketch()
    x = sketch.forward.input("x", torch.empty(16, 16))
    y = sketch.forward.input("y", torch.empty(128, 16))
    tall = sketch.forward.call(aten.mm.default, y, x, name="tall")
    view = sketch.forward.call(aten.t.default, tall, name="view")
    square = sketch.forward.call(aten.mm.default, view, tall, name="square")
    out = sketch.forward.call(aten.mm.default, y, square, name="out")
    (saved,) = sketch.save(sketch.forward.call(aten.le.Scalar, tall, 0, name="late"))
    sketch.backward.input("tangents_1", torch.empty(16, 16))
    return sketch.finish([out], [sketch.backward.call(aten.sum.dim_IntList, saved, [0])])


@pytest.mark.parametrize("stays", [False, True])
def test_torchs_own_order_comes_back_where_nothing_moves(stays: bool) -> None:
    """Unless the budget is kept for no other reason than that something was hoisted."""
    graph = make_late()
    torchs = names_of(graph.forward.graph)
    order = find_order(graph)
    unlimited = PassOptions(cost=toys.make_cost(1.0), store="", budget_bytes=2**40, min_bytes=2**30)
    least = make_plan(graph, unlimited).peak_bytes
    hoist_saved(graph)
    hoisted = names_of(graph.forward.graph)
    assert hoisted != torchs
    plan = make_plan(graph, unlimited)
    assert plan.peak_bytes < least
    options = replace(unlimited, budget_bytes=plan.peak_bytes if stays else least)
    found = _restore_order(graph, replace(plan, cut=0.5), order, options)
    assert names_of(graph.forward.graph) == (hoisted if stays else torchs)
    assert found.peak_bytes == (plan.peak_bytes if stays else least)
    assert found.cut == 0.5


class FakeOnCuda(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)
