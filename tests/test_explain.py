"""Explain: its tables and graphs agree with those of the backend."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import pytest
import torch
from gated_blocks import Block
from torch import Tensor, nn
from zoo import CASES

import fxoffload
from fxoffload.machine import count_held_bytes
from fxoffload.ops import OFFLOAD, OPS, PREFETCH, RELEASE, WAIT
from fxoffload.passes.refusals import STATIC_INPUT
from fxoffload.sizes import MIB


def explain(case: str, directory: Path, **options: object) -> fxoffload.Explanation:
    torch._dynamo.reset()
    torch.manual_seed(0)
    module, inputs = CASES[case]()
    chosen = {"directory": directory, "compiler": "eager", "min_bytes": 1, **options}
    return fxoffload.explain(module, *inputs, options=chosen)


def count(graph: torch.fx.Graph, op: object) -> int:
    return sum(node.target is op for node in graph.nodes)


def test_graphs_before_and_after(spill_directory: Path) -> None:
    (graph,) = explain("mlp", spill_directory, memory_budget="min").graphs
    for module in (graph.forward_before, graph.backward_before):
        assert not any(node.target in OPS for node in module.graph.nodes)
    moved = len(graph.plan.offloads)
    assert moved > 0
    assert count(graph.forward_after.graph, OFFLOAD) == moved
    assert count(graph.forward_after.graph, RELEASE) == moved
    assert count(graph.backward_after.graph, PREFETCH) == moved
    assert count(graph.backward_after.graph, WAIT) == moved


def test_moves_nothing_while_explaining(spill_directory: Path) -> None:
    fxoffload.reset_statistics()
    explain("mlp", spill_directory, memory_budget="min")
    assert fxoffload.statistics().offloaded_bytes == 0


def test_reserves_nothing_while_explaining(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is too small for the plan is no reason not to show it."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a store is opened, or room is reserved")

    monkeypatch.setattr(fxoffload.runtime, "register_store", refuse)
    monkeypatch.setattr(fxoffload.planning, "reserve", refuse)
    assert explain("mlp", spill_directory, memory_budget="min").offloaded_bytes > 0


def test_table_has_a_row_for_each_value_and_the_totals(spill_directory: Path) -> None:
    explanation = explain("attention", spill_directory, memory_budget="min")
    text = str(explanation)
    (graph,) = explanation.graphs
    statics = [value for value in graph.plan.values if value.refusal == STATIC_INPUT]
    for value in graph.plan.values:
        assert (f"\n{value.name} " in text) == (value not in statics)
    static_mib = sum(value.nbytes for value in statics) / 2**20
    assert len(statics) > 1
    assert re.search(rf"\n{len(statics)} value\(s\) +{static_mib:.2f} +keep: {STATIC_INPUT}", text)
    assert "write ends before" in text
    assert "read starts before" in text
    assert "keep: parameter, buffer or other static input" in text
    total = (
        f"total of 1 graph(s): {explanation.offloaded_bytes / MIB:.1f} of "
        f"{explanation.saved_bytes / MIB:.1f} MiB saved are moved"
    )
    assert total in text
    assert re.search(r"\nioengine (posix|kvikio): .+$", text)


def test_the_size_of_the_host_tier_stands_beside_the_engine(spill_directory: Path) -> None:
    explanation = explain("mlp", spill_directory, memory_budget="min", host_budget="64MiB")
    assert re.search(r"\nioengine (posix|kvikio): .+; host tier of 64\.0 MiB$", str(explanation))
    assert '; host tier of 64.0 MiB"' in explanation.report().to_json()


def test_explains_what_runs(spill_directory: Path) -> None:
    """The bytes of the plan are those that a step moves."""
    explanation = explain("attention", spill_directory, memory_budget="min")
    torch._dynamo.reset()
    torch.manual_seed(0)
    module, inputs = CASES["attention"]()
    compiled = fxoffload.compile(
        module, directory=spill_directory, compiler="eager", min_bytes=1, memory_budget="min"
    )
    fxoffload.reset_statistics()
    compiled(*inputs).backward()
    assert fxoffload.statistics().offloaded_bytes == explanation.offloaded_bytes


def test_graph_break_gives_two_graphs(spill_directory: Path) -> None:
    explanation = explain("graph_break", spill_directory, memory_budget="min")
    assert len(explanation.graphs) == 2
    second = {value.name: value for value in explanation.graphs[1].plan.values}
    assert any(not value.owned and value.refusal is None for value in second.values())


def test_model_without_gradients(spill_directory: Path) -> None:
    def double(x: Tensor) -> Tensor:
        return 2 * x

    torch._dynamo.reset()
    explanation = fxoffload.explain(double, torch.ones(3), options={"directory": spill_directory})
    assert (explanation.graphs, explanation.num_compiled) == ((), 1)
    expected = "1 graph(s) compiled, and none saves anything for a backward: nothing to move"
    assert str(explanation) == expected


def test_model_without_graphs(spill_directory: Path) -> None:
    """What torch skips is told from what saves nothing."""
    layer = nn.Linear(3, 3)

    @torch.compiler.disable
    def skipped(x: Tensor) -> Tensor:
        return layer(x).tanh()

    def call(x: Tensor) -> Tensor:
        return skipped(x)

    torch._dynamo.reset()
    explanation = fxoffload.explain(call, torch.ones(3), options={"directory": spill_directory})
    assert (explanation.graphs, explanation.num_compiled) == ((), 0)
    assert str(explanation).startswith("no graph was compiled: ")
    assert 'set TORCH_LOGS="+dynamo"' in str(explanation)


def test_a_budget_that_cannot_be_met(spill_directory: Path) -> None:
    with pytest.raises(fxoffload.BudgetError, match="cannot be met"):
        explain("mlp", spill_directory, memory_budget=1)


def test_unknown_option_is_refused() -> None:
    with pytest.raises(fxoffload.ConfigError, match="did you mean 'min_bytes'"):
        fxoffload.explain(nn.Linear(2, 2), torch.ones(2, 2), options={"min_byte": 1})


@pytest.mark.parametrize(("budget", "cut"), [("1GiB", "loops"), ("min", None)])
def test_masks_are_computed_again_where_vectors_of_bools_are_slow(
    spill_directory: Path, budget: str, cut: str | None
) -> None:
    """Torch saves the mask of a relu; without it the peak of this small model would be higher."""
    torch._dynamo.reset()
    layers = [nn.Linear(64, 256, bias=False), nn.ReLU(), nn.Linear(256, 64, bias=False), nn.Tanh()]
    model, x = nn.Sequential(*layers, nn.Linear(64, 8)), torch.randn(8, 1024, 64)
    options = {"directory": spill_directory, "memory_budget": budget}
    (graph,) = fxoffload.explain(model, x, options=options).graphs
    assert graph.plan.cut == cut
    nodes = {node.name: node for node in graph.forward_before.graph.nodes}
    saved = [nodes[name] for value in graph.plan.values for name in value.members]
    assert any(node.meta["val"].dtype == torch.bool for node in saved) == (cut is None)


def test_the_bound_stands_beside_the_schedule(spill_directory: Path) -> None:
    found = explain("mlp", spill_directory)
    assert found.schedule is not None
    assert found.bound is not None
    assert found.bound.peak_bytes is not None
    assert found.bound.lowest_peak_bytes <= found.bound.peak_bytes <= found.schedule.peak_bytes
    assert str(found.bound) in str(found)
    budget_bytes = (found.bound.lowest_peak_bytes + found.schedule.unmoved_peak_bytes) // 2
    limited = explain("mlp", spill_directory, memory_budget=budget_bytes)
    assert limited.schedule is not None
    assert limited.bound is not None
    assert limited.bound.budget_bytes == budget_bytes
    assert limited.bound.step_seconds is not None
    assert limited.bound.step_seconds <= limited.schedule.step_seconds


def test_a_limit_of_the_device_counts_what_is_on_it(spill_directory: Path) -> None:
    model, x = nn.Sequential(*(Block(512) for _ in range(6))), torch.ones(2048, 512)

    def plan(limit: int) -> fxoffload.Explanation:
        torch._dynamo.reset()
        options = {"directory": spill_directory, "compiler": "eager", "device_memory": limit}
        return fxoffload.explain(model, x, options=options)

    gc.collect()  # What other tests left would be freed while the step is planned.
    held_bytes = count_held_bytes(x.device)
    assert held_bytes is not None
    limit = held_bytes + 90 * MIB  # With nothing moved the step takes 110.
    step = plan(limit).step
    assert step is not None
    schedule = step.record.schedule
    assert schedule.moved_bytes > 0
    assert schedule.budget_bytes is not None
    assert 50 * MIB < schedule.budget_bytes < 90 * MIB
    assert schedule.peak_bytes <= schedule.budget_bytes < schedule.unmoved_peak_bytes
    with pytest.raises(fxoffload.BudgetError, match="in use before a step begins"):
        plan(held_bytes)
