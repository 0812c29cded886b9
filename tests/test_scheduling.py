"""schedule_transfers: releases and prefetches move to the planned places, and nothing else does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx
from toys import names_of

from fxoffload.errors import PlanError
from fxoffload.graph import TrainingGraph, is_view
from fxoffload.ops import OFFLOAD, PREFETCH, RELEASE, WAIT
from fxoffload.passes.insertion import insert_transfers
from fxoffload.passes.lifetimes import find_saved_values
from fxoffload.passes.scheduling import schedule_transfers
from fxoffload.passes.verification import verify_transfers
from fxoffload.planner.plan import Offload, Plan


def schedule(graph: TrainingGraph, places: Mapping[str, Offload]) -> TrainingGraph:
    """Move everything, with these decisions; check that nothing but the order of nodes changed."""
    plan = toys.plan_all(find_saved_values(graph))
    pairs = zip(plan.values, plan.decisions, strict=True)
    plan = replace(plan, decisions=tuple(places.get(value.name, d) for value, d in pairs))
    insert_transfers(graph, plan, store="store")
    return reschedule(graph, plan)


def reschedule(graph: TrainingGraph, plan: Plan) -> TrainingGraph:
    before = [snapshot(module.graph) for module in (graph.forward, graph.backward)]
    schedule_transfers(graph, plan)
    verify_transfers(graph)
    assert [snapshot(module.graph) for module in (graph.forward, graph.backward)] == before
    return graph


def snapshot(graph: fx.Graph) -> tuple[Counter[str], list[str]]:
    """Every node with its arguments, in no order; and the order of all but the moved kinds."""
    nodes = Counter(f"{n.name} {n.target} {n.args[:2]}" for n in graph.nodes)
    return nodes, [n.name for n in graph.nodes if n.target not in (RELEASE, PREFETCH)]


def find_next(graph: fx.Graph, op: object, ticket: str) -> str:
    """Name of the node right behind the release or the prefetch of `ticket`."""
    (node,) = (n for n in graph.nodes if n.target is op and str(n.args[0]) == ticket)
    return node.next.name


def test_before_and_after() -> None:
    graph = schedule(toys.make_chain(2), {"layer0": Offload("nvme", "out", "grad1")})
    assert names_of(graph.forward.graph) == [
        "layer0", "offload_layer0", "layer1", "offload_layer1", "release_default", "out",
        "release_default_1",
    ]  # fmt: skip
    assert names_of(graph.backward.graph) == [
        "prefetch_default_1", "wait_layer1", "prefetch_default", "grad1", "wait_layer0", "grad0",
    ]  # fmt: skip


def test_release_stands_where_the_plan_says() -> None:
    graph = schedule(toys.make_chain(6), {"layer1": Offload("nvme", "layer4", "")})
    assert find_next(graph.forward.graph, RELEASE, "offload_layer1") == "layer4"


def test_prefetch_stands_where_the_plan_says() -> None:
    graph = schedule(toys.make_chain(6), {"layer1": Offload("nvme", "", "grad4")})
    assert find_next(graph.backward.graph, PREFETCH, "offload_layer1") == "grad4"


def test_places_without_name_stay_where_insertion_put_them() -> None:
    graph = toys.make_chain(3)
    plan = toys.plan_all(find_saved_values(graph))
    insert_transfers(graph, plan, store="store")
    before = toys.describe(graph.forward.graph), toys.describe(graph.backward.graph)
    reschedule(graph, plan)
    assert (toys.describe(graph.forward.graph), toys.describe(graph.backward.graph)) == before


@pytest.mark.parametrize("blocks", [True, False])
def test_release_in_front_of_the_output(blocks: bool) -> None:
    """Both kinds are legal there; behind them nothing computes."""
    graph = schedule(toys.make_chain(4), {"layer0": Offload("nvme", "output", "", blocks=blocks)})
    (release,) = (
        n for n in graph.forward.graph.nodes
        if n.target is RELEASE and str(n.args[0]) == "offload_layer0"
    )  # fmt: skip
    assert release.next.op == "output"
    assert release.args[2] is blocks


def test_releases_elsewhere_block() -> None:
    graph = schedule(toys.make_chain(4), {"layer0": Offload("nvme", "layer3", "")})
    releases = graph.forward.graph.find_nodes(op="call_function", target=RELEASE)
    assert all(node.args[2] is True for node in releases)


def test_release_does_not_rise_above_a_reader() -> None:
    graph = schedule(toys.make_chain(4), {"layer2": Offload("nvme", "layer1", "")})
    assert find_next(graph.forward.graph, RELEASE, "offload_layer2") != "layer1"
    assert toys.position(graph.forward.graph, "layer3") < toys.position(
        graph.forward.graph, find_next(graph.forward.graph, RELEASE, "offload_layer2")
    )


def test_prefetch_does_not_sink_below_its_wait() -> None:
    graph = schedule(toys.make_chain(4), {"layer3": Offload("nvme", "", "grad0")})
    assert find_next(graph.backward.graph, PREFETCH, "offload_layer3") == "wait_layer3"


def test_prefetches_of_one_place_queue_in_the_order_of_their_waits() -> None:
    """The backward of a chain reads the last layer first."""
    places = {f"layer{index}": Offload("nvme", "", "grad3") for index in range(4)}
    graph = schedule(toys.make_chain(4), places)
    backward = graph.backward.graph
    tickets = [str(n.args[0]) for n in backward.nodes if n.target is PREFETCH]
    assert tickets == [f"offload_layer{index}" for index in (3, 2, 1, 0)]
    assert names_of(backward, WAIT) == [f"wait_layer{index}" for index in (3, 2, 1, 0)]


@pytest.mark.parametrize("place", [Offload("nvme", "missing", ""), Offload("nvme", "", "missing")])
def test_node_that_is_not_there_is_an_error(place: Offload) -> None:
    with pytest.raises(PlanError, match="in front of 'missing', which the graph lacks"):
        schedule(toys.make_chain(2), {"layer0": place})


def test_running_twice_changes_nothing_more() -> None:
    graph = toys.make_chain(5)
    plan = toys.plan_all(find_saved_values(graph))
    decisions = tuple(Offload("nvme", "out", "grad4") for _ in plan.decisions)
    plan = replace(plan, decisions=decisions)
    insert_transfers(graph, plan, store="store")
    reschedule(graph, plan)
    before = toys.describe(graph.backward.graph)
    reschedule(graph, plan)
    assert toys.describe(graph.backward.graph) == before


@settings(deadline=None, max_examples=100)
@given(st.data(), toys.random_graphs())
def test_random_places_stay_legal_and_compute_the_same_bits(
    data: st.DataObject, graph: TrainingGraph
) -> None:
    before = toys.copy_graph(graph)
    forward = [
        n.name for n in graph.forward.graph.nodes if n.op != "placeholder" and not is_view(n)
    ]
    backward = [
        n.name for n in graph.backward.graph.nodes if n.op != "placeholder" and not is_view(n)
    ]
    places: dict[str, Offload] = {}
    for value in find_saved_values(graph):
        if value.refusal is None:
            release = data.draw(st.sampled_from(forward))
            blocks = release != "output" or data.draw(st.booleans())
            places[value.name] = Offload(
                "nvme", release, data.draw(st.sampled_from(backward)), blocks
            )
    schedule(graph, places)
    assert len(names_of(graph.forward.graph, OFFLOAD)) == len(places)
    toys.assert_same_step(before, graph)
