"""Planning a graph: torch's own order of nodes comes back where nothing moves."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
import toys
from python_runs import run_python
from torch import fx
from toys import Sketch, aten, names_of

from fxoffload import passes, planning, runtime
from fxoffload.config import OffloadConfig
from fxoffload.errors import StoreFull
from fxoffload.graph import TrainingGraph
from fxoffload.passes import PassOptions, find_order, hoist_saved, make_plan
from fxoffload.planner.graph_model import GraphModel
from fxoffload.planner.plan import Cut
from fxoffload.planning import (
    _restore_order,
    _show_partition,
    _transform,
    build_options,
    build_tracer,
    reserve,
)
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.store.store import OffloadStore
from fxoffload.torch_internals import compile_with_aot


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


def test_a_partition_is_shown_in_torchs_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """To torch's trace and to the caller; the passes go on with the hoisted order."""
    graph = make_late()
    torchs, orders = names_of(graph.forward.graph), {graph.forward: find_order(graph)}
    hoist_saved(graph)
    hoisted = names_of(graph.forward.graph)
    shown: list[list[str]] = []

    def keep(graph: TrainingGraph, *_: str) -> None:
        shown.append(names_of(graph.forward.graph))

    monkeypatch.setattr(planning, "emit_graphs", keep)
    _show_partition(graph, orders, keep)
    assert shown == [torchs, torchs]
    assert names_of(graph.forward.graph) == hoisted != torchs


@pytest.mark.parametrize(("room", "budget"), [(None, None), (2**40, 2**40), (1, "min")])
def test_a_limit_of_the_device_decides_the_cut(
    room: int | None, budget: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there now may be gone when the graph runs: so it is no error here."""
    graph = make_late()
    options = PassOptions(cost=toys.make_cost(1.0), store="", min_bytes=1)
    asked: list[object] = []
    transform = passes.transform_graph

    def watch(graph: TrainingGraph, options: PassOptions, **rest: Any) -> passes.Transformed:
        asked.append(options.budget_bytes)
        return transform(graph, options, **rest)

    monkeypatch.setattr(passes, "transform_graph", watch)
    _, used = _transform(graph, options, room, lambda cut: make_late(), None)
    assert used.budget_bytes == budget
    assert asked == ([room, budget] if budget == "min" else [budget]), "planned once where it fits"


def test_ranks_cut_by_a_host_tier_that_nobody_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank plans what moves by the one that it has."""
    monkeypatch.setattr(runtime, "find_host_share", lambda: 5000)
    cost = toys.make_cost(1.0)
    cost = replace(cost, links={**cost.links, "host": cost.links["nvme"]})
    options = build_options(OffloadConfig(directory="."), cost)
    assert (options.host_bytes, options.cut_host_bytes) == (5000, 64 * 2**30)
    own = build_options(OffloadConfig(directory=".", host_budget=300), cost)
    assert (own.host_bytes, own.cut_host_bytes) == (300, 300)


@pytest.mark.parametrize("in_nvme", [True, False])
def test_what_exceeds_the_host_tier_is_reserved_on_the_drive(
    in_nvme: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan of an earlier process, which found more host memory free."""
    engines = {"nvme": MemoryEngine(2**20), "host": MemoryEngine(2**30)}
    options = PassOptions(
        cost=toys.make_cost(1.0), store="", budget_bytes="min", min_bytes=1, host_bytes=2**30
    )
    links = options.cost.links
    cost = replace(options.cost, links={**links, "host": links["nvme"]})
    plan = make_plan(toys.make_chain(3), replace(options, cost=cost))
    (nbytes,) = {value.nbytes for value, _ in plan.offloads}
    assert {decision.tier for _, decision in plan.offloads} == {"host"}
    left = len(plan.offloads) - 1
    engines["host"].capacity_bytes = nbytes
    engines["nvme"].capacity_bytes = left * nbytes - (not in_nvme)
    store = OffloadStore(engines, max_inflight_bytes=2**20)
    monkeypatch.setattr(runtime, "find_store", lambda _: store)
    with nullcontext() if in_nvme else pytest.raises(StoreFull):
        reserve("store", plan)
    store.close()


def test_models_of_a_graph_at_its_cuts(fresh_dynamo: None) -> None:
    config = OffloadConfig(hardware=toys.HARDWARE, min_bytes=1, compiler="eager")
    found: list[Mapping[Cut, GraphModel]] = []

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        return compile_with_aot(gm, inputs, build_tracer(config, found.append))

    x = toys.make_input().requires_grad_()
    (gradient,) = torch.autograd.grad(torch.compile(toys.deep, backend=backend)(x), x)
    (expected,) = torch.autograd.grad(toys.deep(x), x)
    assert torch.equal(gradient, expected), "the graph that runs is the program's own"
    (models,) = found
    saved_bytes = {cut: sum(value.nbytes for value in it.values) for cut, it in models.items()}
    assert next(iter(models)) is None
    assert saved_bytes[0.2] < saved_bytes[0.6] < saved_bytes[None]
    assert sum(models[0.2].backward.seconds) > sum(models[None].backward.seconds)
    assert {kind for (kind, _), _ in models[None].forward.ops} == {"offload", "release"}


def test_torch_logs_turns_on_its_lines() -> None:
    """torch imports fxoffload for that while fxoffload imports torch."""
    code = "from fxoffload.planning import log; log.info('an info'); log.debug('a detail')"
    environment = {**os.environ, "TORCH_LOGS": "+fxoffload"}
    shown = run_python("-c", code, environment=environment).stderr.splitlines()
    assert [line.split("] ")[1] for line in shown] == ["an info", "a detail"]
