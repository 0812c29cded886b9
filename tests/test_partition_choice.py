"""choose_partition, as transform_graph calls it: which cuts are tried, and which one is taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import pytest
import torch
import toys
from torch import Tensor, fx
from torch.utils.checkpoint import CheckpointPolicy
from toys import NBYTES, OPTIONS, make_cost

from fxoffload.cost import CostModel, DeviceSpeed
from fxoffload.graph import TrainingGraph
from fxoffload.passes import PassOptions, make_plan, partition_choice, transform_graph
from fxoffload.passes.partition_choice import (
    ALL_SAVED,
    CUTS,
    PATIENCE,
    choose_partition,
    list_cuts,
)
from fxoffload.planner.plan import Cut, Plan
from fxoffload.planner.simulation import RESOLUTION
from fxoffload.torch_internals import (
    Graphs,
    OffloadPartitioner,
    PartitionFunction,
    compile_with_aot,
)


def plan_graph(graph: TrainingGraph, options: PassOptions, **chosen: Any) -> Plan:
    return transform_graph(graph, options, **chosen).plan


def make_recomputing_chain(num_layers: int, stride: int = 99) -> TrainingGraph:
    """make_chain, but saves every `stride`th layer and computes the others from these when needed.

    By default that is the first layer alone.
    """
    sketch = toys.Sketch()
    x = sketch.forward.input("x", toys.make_input())
    nodes = [sketch.forward.call(toys.aten.sin.default, x, name="layer0")]
    for _ in range(1, num_layers):
        nodes.append(sketch.forward.call(toys.aten.sin.default, nodes[-1]))
    out = sketch.forward.call(toys.aten.cos.default, nodes[-1])
    saved = sketch.save(*nodes[::stride])
    gradient = sketch.backward.input("tangents_1", toys.make_input())
    for index in reversed(range(num_layers)):
        layer = saved[index // stride]
        for _ in range(index % stride):
            layer = sketch.backward.call(toys.aten.sin.default, layer)
        gradient = sketch.backward.call(toys.aten.mul.Tensor, gradient, layer)
    return sketch.finish([out], [gradient])


def record_cuts(
    make_graph: Callable[[], TrainingGraph],
) -> tuple[list[Cut], Callable[[Cut], TrainingGraph]]:
    """A list, and a partitioner that notes there what it is asked for."""
    asked: list[Cut] = []

    def repartition(cut: Cut) -> TrainingGraph:
        asked.append(cut)
        return make_graph()

    return asked, repartition


def test_other_partitions_are_tried_where_the_first_waits() -> None:
    """On a link that takes minutes, computing the layers again is the cheaper."""
    graph, shown = toys.make_chain(6), list[TrainingGraph]()
    asked, repartition = record_cuts(lambda: make_recomputing_chain(6))

    options = dataclasses.replace(OPTIONS, cost=make_cost(600.0), budget_bytes=6 * NBYTES)
    alone = plan_graph(toys.copy_graph(graph), options)
    assert alone.exposed_seconds > 600
    plan = plan_graph(graph, options, repartition=repartition, before_rewrite=shown.append)
    assert plan.exposed_seconds == 0.0
    assert plan.peak_bytes <= 6 * NBYTES
    assert plan.cut == asked[0]
    assert shown == [graph]
    toys.assert_same_step(toys.make_chain(6), graph)


def make_contended_options(taken_seconds: float, transfer_seconds: float = 0.1) -> PassOptions:
    """Transfers of `transfer_seconds`: 0.1 hides. They take that much from compute each way."""
    cost = make_cost(transfer_seconds)
    taken = taken_seconds / NBYTES
    links = {
        tier: dataclasses.replace(link, compute_seconds_per_byte=taken)
        for tier, link in cost.links.items()
    }
    cost = dataclasses.replace(cost, links=links)
    return dataclasses.replace(OPTIONS, cost=cost, budget_bytes=5 * NBYTES)


def test_other_partitions_are_tried_where_transfers_slow_compute_down() -> None:
    asked, repartition = record_cuts(lambda: make_recomputing_chain(6))

    dear = make_contended_options(100.0)
    graph = toys.make_chain(6)
    alone = plan_graph(toys.copy_graph(graph), dear)
    assert alone.exposed_seconds == 0.0
    assert alone.contended_seconds == 200.0 * len(alone.offloads) > 0.0
    plan = plan_graph(graph, dear, repartition=repartition)
    assert plan.cut == asked[0]
    assert plan.step_seconds < alone.step_seconds


@pytest.mark.parametrize(("transfer_seconds", "patience"), [(0.1, 1), (600.0, PATIENCE)])
def test_the_sweep_of_partitions_ends_when_it_gets_no_better(
    transfer_seconds: float, patience: int
) -> None:
    asked, repartition = record_cuts(lambda: toys.make_chain(6))

    options = make_contended_options(1.0, transfer_seconds)
    plan = plan_graph(toys.make_chain(6), options, repartition=repartition)
    assert plan.offloads
    assert plan.cut is None
    assert (plan.exposed_seconds > 0.0) == (patience == PATIENCE)
    assert asked == list(CUTS[:patience])


def test_no_partition_is_asked_for_twice() -> None:
    """What came to half of the bytes when more was allowed is what a share down to that gives."""
    asked, repartition = record_cuts(lambda: toys.make_chain(3))

    options = make_contended_options(1.0, 600.0)
    plan_graph(toys.make_chain(6), options, repartition=repartition)
    smaller = [cut for cut in CUTS if isinstance(cut, float) and cut < 0.5]
    assert asked[:2] == [CUTS[0], smaller[0]]


def test_the_sweep_ends_where_recomputing_costs_more_than_it_could_gain() -> None:
    """The chain computes 15 layers again, of a second each, to save transfers of a few seconds."""
    asked, repartition = record_cuts(lambda: make_recomputing_chain(6))

    options = make_contended_options(1.0)
    alone = plan_graph(toys.make_chain(6), options)
    assert 0.0 < alone.contended_seconds < 15.0
    plan = plan_graph(toys.make_chain(6), options, repartition=repartition)
    assert plan.cut is None
    assert asked == [CUTS[0]]


def refuse(cut: Cut) -> TrainingGraph:
    """In place of a partitioner that must not be asked."""
    raise AssertionError(cut)


@pytest.mark.parametrize("budget", [None, 2**20])
def test_other_partitions_are_not_tried_without_need(budget: int | None) -> None:
    options = dataclasses.replace(OPTIONS, budget_bytes=budget)
    assert plan_graph(toys.make_chain(3), options, repartition=refuse).cut is None


def test_other_partitions_are_not_tried_to_gain_next_to_nothing() -> None:
    graph = toys.make_chain(6)
    alone = plan_graph(toys.copy_graph(graph), make_contended_options(0.0))
    transfers = 2 * len(alone.offloads)
    cheap, dear = (
        make_contended_options(share * RESOLUTION * alone.step_seconds / transfers)
        for share in (0.9, 1.1)
    )
    plan = plan_graph(toys.copy_graph(graph), cheap, repartition=refuse)
    assert plan.contended_seconds > 0.0
    with pytest.raises(AssertionError):
        plan_graph(graph, dear, repartition=refuse)


@pytest.mark.parametrize(("taken_seconds", "num_asked"), [(0.53, 1), (0.6, 2)])
def test_the_sweep_ends_where_moving_costs_hardly_more_than_recomputing(
    taken_seconds: float, num_asked: int
) -> None:
    """Every other layer is computed again, a second each; moving one takes 1.06 or 1.2 s."""
    asked, repartition = record_cuts(lambda: make_recomputing_chain(40, stride=2))

    options = make_contended_options(taken_seconds)
    plan = plan_graph(toys.make_chain(40), options, repartition=repartition)
    assert plan.cut == CUTS[0]
    assert plan.exposed_seconds == 0.0
    assert plan.contended_seconds > 10 * RESOLUTION * plan.step_seconds
    assert len(asked) == num_asked


@pytest.mark.parametrize("budget", [None, "min", 2**20])
@pytest.mark.parametrize(("share", "asks"), [(0.9, False), (1.1, True), (1000.0, True)])
def test_loops_are_computed_again_where_saved_masks_are_slow(
    budget: int | Literal["min"] | None, share: float, asks: bool
) -> None:
    asked, repartition = record_cuts(lambda: toys.make_masked(saves_mask=False))

    graph = toys.make_masked(saves_mask=True)
    links = make_cost(1e-30).links
    options = PassOptions(
        cost=CostModel(links, DeviceSpeed(1e30, 1.0)), store="store", budget_bytes=budget
    )
    alone = make_plan(toys.copy_graph(graph), options)
    # Each of the bools is stored once and loaded once; all of them are part of the step too.
    rest = share * RESOLUTION / (1.0 - share * RESOLUTION) if share < 2.0 else share
    seconds = rest * alone.step_seconds / (2 * 16 * 16)
    slow = CostModel(links, DeviceSpeed(1e30, 1.0, seconds, seconds))
    plan = plan_graph(graph, dataclasses.replace(options, cost=slow), repartition=repartition)
    assert asked == (["loops"] if asks else [])
    if share > 2.0:
        assert plan.cut == "loops"
    toys.assert_same_step(toys.make_masked(saves_mask=True), graph)
    eager = dataclasses.replace(options, cost=slow, fuses=False)
    plan_graph(toys.make_masked(saves_mask=True), eager, repartition=refuse)


def make_checkpointed_chain(num_layers: int) -> TrainingGraph:
    graph = make_recomputing_chain(num_layers)
    for node in graph.forward.graph.nodes:
        node.meta["recompute"] = CheckpointPolicy.PREFER_RECOMPUTE
    return graph


def plan_both(
    graph: TrainingGraph, budget: int | Literal["min"] | None, transfer_seconds: float
) -> tuple[Plan, Plan, list[Cut]]:
    """Plans of a checkpointed chain of 6: as it is, and of its best cut; the cuts asked for."""
    asked, repartition = record_cuts(lambda: toys.make_chain(6))
    options = dataclasses.replace(OPTIONS, cost=make_cost(transfer_seconds), budget_bytes=budget)
    own = make_plan(toys.copy_graph(graph), options)
    return own, plan_graph(graph, options, repartition=repartition), asked


@pytest.mark.parametrize(
    ("budget", "transfer_seconds", "share"),
    [
        (None, 0.1, ALL_SAVED),  # What hides fits into the memory of the checkpoints.
        (None, 1.0, ALL_SAVED),  # More must move for that: at a price, and a lower one.
        (None, 600.0, None),
        ("min", 0.1, ALL_SAVED),
        ("min", 600.0, ALL_SAVED),  # However long it takes.
        (2**20, 0.1, ALL_SAVED),  # With nothing moved.
        (6 * NBYTES, 0.1, ALL_SAVED),
        (6 * NBYTES, 600.0, None),
    ],
)
def test_what_checkpoints_recompute_moves_where_that_is_better(
    budget: int | Literal["min"] | None, transfer_seconds: float, share: float | None
) -> None:
    graph = make_checkpointed_chain(6)
    own, plan, asked = plan_both(graph, budget, transfer_seconds)
    assert plan.cut == share
    assert asked == [ALL_SAVED], "no more is recomputed where what is costs no waiting"
    assert plan.budget_bytes == own.budget_bytes
    if budget == "min":
        assert plan.peak_bytes < own.peak_bytes
    elif share is not None:
        assert plan.step_seconds < own.step_seconds
        assert plan.peak_bytes <= (own.unmoved_peak_bytes if budget is None else budget)
    toys.assert_same_step(toys.make_chain(6), graph)


@pytest.mark.parametrize("budget", [None, "min", 2**20])
@pytest.mark.parametrize("transfer_seconds", [0.1, 600.0])
def test_checkpoints_are_lifted_only_for_what_moves_out(
    budget: int | Literal["min"] | None, transfer_seconds: float
) -> None:
    """What a graph holds between forward and backward adds up over the graphs of a program."""
    _, plan, _ = plan_both(make_checkpointed_chain(6), budget, transfer_seconds)
    unmoved = dataclasses.replace(OPTIONS, budget_bytes=2**60)
    own, free = make_checkpointed_chain(6), toys.make_chain(6)
    own_bytes, free_bytes = (make_plan(graph, unmoved).held_bytes for graph in (own, free))
    assert own_bytes < free_bytes
    assert plan.held_bytes <= own_bytes


def test_cuts_that_may_be_tried() -> None:
    assert list_cuts(toys.make_chain(2)) == (None, *CUTS)
    assert list_cuts(make_checkpointed_chain(2)) == (None, ALL_SAVED, *CUTS)


@pytest.mark.parametrize("forced", [False, True])
def test_checkpoints_are_not_lifted_where_that_does_without_what_must_move(forced: bool) -> None:
    """Without them the backward reads what is made of the products, and not the products."""
    policy = CheckpointPolicy.MUST_CPU_OFFLOAD if forced else CheckpointPolicy.PREFER_CPU_OFFLOAD

    def decide(_: object, op: object, *args: object, **kwargs: object) -> CheckpointPolicy:
        return policy if op is toys.aten.mm.default else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = partial(torch.utils.checkpoint.create_selective_checkpoint_contexts, decide)

    def function(x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(
            toys.deep, x, use_reentrant=False, context_fn=contexts
        )

    graphs: list[TrainingGraph] = []

    def choose(partition: PartitionFunction, count: int, static: tuple[int, ...]) -> Graphs:
        def build(cut: Cut) -> TrainingGraph:
            graph = TrainingGraph(*partition(cut), count)
            graphs.append(graph)
            return graph

        options = dataclasses.replace(OPTIONS, budget_bytes=None)
        chosen, plan = choose_partition(build(None), options, build)
        moved = [value.name for value, _ in plan.offloads if value.name.startswith("mm")]
        assert len(moved) == (4 if forced else 0)
        assert plan.cut == (None if forced else ALL_SAVED)
        return chosen.forward, chosen.backward

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        return compile_with_aot(gm, inputs, OffloadPartitioner(choose, "test"))

    torch._dynamo.reset()
    torch.compile(function, backend=backend)(toys.make_input())
    assert len(graphs) >= 2


@pytest.mark.parametrize("budget", [None, "min", 6 * NBYTES])
def test_a_cut_by_given_numbers_is_the_same_whatever_was_measured(
    budget: int | Literal["min"] | None,
) -> None:
    plans = {}
    for transfer_seconds in (0.1, 600.0):
        _, repartition = record_cuts(lambda: toys.make_chain(6))
        options = dataclasses.replace(
            OPTIONS, cost=make_cost(transfer_seconds), budget_bytes=budget
        )
        alone = plan_graph(make_checkpointed_chain(6), options, repartition=repartition)
        shared = dataclasses.replace(options, cut_cost=make_cost(0.1))
        plan = plan_graph(make_checkpointed_chain(6), shared, repartition=repartition)
        plans[transfer_seconds] = alone, plan
    (fast, same), (slow, other) = plans.values()
    assert same.cut == other.cut == (None if budget is None else ALL_SAVED)
    if budget != "min":
        assert fast.cut != slow.cut
    assert other.step_seconds > same.step_seconds or not other.offloads, "by its own numbers"


def test_a_cut_by_given_numbers_counts_on_a_given_host_tier(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The plan at that cut counts on the one that is there."""
    asked: list[int] = []
    plan_with = partition_choice.make_plan

    def watch(graph: TrainingGraph, options: PassOptions, **rest: Any) -> Plan:
        asked.append(options.host_bytes)
        return plan_with(graph, options, **rest)

    monkeypatch.setattr(partition_choice, "make_plan", watch)
    _, repartition = record_cuts(lambda: toys.make_chain(6))
    options = dataclasses.replace(
        OPTIONS, cut_cost=OPTIONS.cost, cut_host_bytes=7, host_bytes=5, budget_bytes="min"
    )
    plan_graph(toys.make_chain(6), options, repartition=repartition)
    assert asked == [*[7] * (len(asked) - 1), 5]
    assert len(asked) > 1
