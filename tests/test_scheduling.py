"""sink_releases and advance_prefetches: only the order changes, by time and bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx
from toys import make_cost, names_of

from fxoffload.cost import CostModel
from fxoffload.graph import TrainingGraph, count_bytes
from fxoffload.ops import OFFLOAD, OPS, PREFETCH, RELEASE, WAIT
from fxoffload.passes.insertion import insert_transfers
from fxoffload.passes.lifetimes import find_saved_values
from fxoffload.passes.scheduling import MARGIN, advance_prefetches, sink_releases
from fxoffload.passes.verification import verify_transfers
from fxoffload.plan import Offload, Plan

NBYTES = 16 * 16 * 4
UNLIMITED = 2**40


def insert(graph: TrainingGraph, tiers: Sequence[str] = ()) -> TrainingGraph:
    values = find_saved_values(graph)
    plan = toys.plan_all(values)
    if tiers:
        plan = Plan(values, tuple(Offload(tier) for tier in tiers), 0, 0)  # pyright: ignore
    insert_transfers(graph, plan, store="store")
    return graph


def schedule(
    graph: TrainingGraph, cost: CostModel, *, max_inflight_bytes: int = UNLIMITED
) -> TrainingGraph:
    """Both passes, with the check that nothing but the order of nodes changed."""
    before = [snapshot(module.graph) for module in (graph.forward, graph.backward)]
    sink_releases(graph, cost=cost)
    verify_transfers(graph)
    advance_prefetches(graph, cost=cost, max_inflight_bytes=max_inflight_bytes)
    verify_transfers(graph)
    assert [snapshot(module.graph) for module in (graph.forward, graph.backward)] == before
    return graph


def snapshot(graph: fx.Graph) -> tuple[Counter[str], list[str]]:
    """Every node with its arguments, in no order; and the order of all but the moved kinds."""
    nodes = Counter(f"{n.name} {n.target} {n.args[:2]}" for n in graph.nodes)
    return nodes, [n.name for n in graph.nodes if n.target not in (RELEASE, PREFETCH)]


def releases(graph: TrainingGraph) -> list[fx.Node]:
    """In the order of their tickets' births."""
    tickets = graph.forward.graph.find_nodes(op="call_function", target=OFFLOAD)
    return [next(user for user in ticket.users if user.target is RELEASE) for ticket in tickets]


def prefetches(graph: TrainingGraph) -> list[fx.Node]:
    return list(graph.backward.graph.find_nodes(op="call_function", target=PREFETCH))


def find_wait(prefetch: fx.Node) -> fx.Node:
    ticket = prefetch.args[0]
    assert isinstance(ticket, fx.Node)
    return next(user for user in ticket.users if user.target is WAIT)


def find_delay(graph: TrainingGraph, index: int) -> int:
    """Computing nodes between the offload and the release of one layer of a chain."""
    names = [n.name for n in graph.forward.graph.nodes]
    release = releases(graph)[index]
    between = names[names.index(f"offload_layer{index}") : names.index(release.name)]
    return sum(name.startswith(("layer", "out")) for name in between)


def find_lead(graph: TrainingGraph, index: int) -> int:
    """Computing nodes between the prefetch and the wait of one layer of a chain."""
    names = [n.name for n in graph.backward.graph.nodes]
    (prefetch,) = (n for n in prefetches(graph) if str(n.args[0]) == f"offload_layer{index}")
    between = names[names.index(prefetch.name) : names.index(f"wait_layer{index}")]
    return sum(name.startswith("grad") for name in between)


# --- releases -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "delay"), [(0.0, 1), (0.4, 1), (0.9, 2), (1.4, 3), (1.9, 4)])
def test_release_stands_where_its_write_should_be_done(seconds: float, delay: int) -> None:
    """Each node takes one second, and each write MARGIN times its own."""
    assert MARGIN == 2.0
    graph = schedule(insert(toys.make_chain(12)), make_cost(seconds))
    assert find_delay(graph, 0) == delay
    assert releases(graph)[0].args[2] is True


def test_latency_delays_a_release_but_not_the_next() -> None:
    """Transfers overlap their latencies and queue for the bandwidth."""
    graph = schedule(insert(toys.make_chain(12)), make_cost(0.4, latency=1.0))
    assert [find_delay(graph, index) for index in range(6)] == [3] * 6


def test_writes_queue() -> None:
    """When each write takes longer than the node between them, the delays grow."""
    graph = schedule(insert(toys.make_chain(16)), make_cost(0.75))
    delays = [find_delay(graph, index) for index in range(8)]
    assert delays == sorted(delays)
    assert delays[-1] > delays[0]


def test_slower_link_releases_later(zoo_graph: TrainingGraph) -> None:
    insert(zoo_graph)
    places: list[list[int]] = []
    for seconds in (0.0, 0.5, 2.0, 1e9):
        graph = schedule(toys.copy_graph(zoo_graph), make_cost(seconds))
        computing = [n for n in graph.forward.graph.nodes if n.target not in OPS]
        places.append([sum(node < release for node in computing) for release in releases(graph)])
    for faster, slower in pairwise(places):
        assert all(a <= b for a, b in zip(faster, slower, strict=True))


def test_forward_that_is_too_short_does_not_block() -> None:
    graph = schedule(insert(toys.make_chain(4)), make_cost(1e9))
    names = [node.name for node in graph.forward.graph.nodes]
    assert all(node.args[2] is False for node in releases(graph))
    assert names[-5:-1] == [node.name for node in releases(graph)]


def test_only_the_last_releases_do_not_block() -> None:
    graph = schedule(insert(toys.make_chain(8)), make_cost(0.9))
    blocks = [node.args[2] for node in releases(graph)]
    assert blocks == sorted(blocks, reverse=True)
    assert set(blocks) == {True, False}


def test_tiers_have_their_own_links() -> None:
    slow, fast = make_cost(1e9).links["nvme"], make_cost(0.0).links["nvme"]
    cost = toys.UniformCost(links={"nvme": slow, "host": fast}, speed=toys.CPU_SPEED)
    graph = schedule(insert(toys.make_chain(4), ["host", "host", "nvme", "nvme"]), cost)
    assert [node.args[2] for node in releases(graph)] == [True, True, False, False]


# --- prefetches ---------------------------------------------------------------------------------


def test_prefetch_is_earlier_with_a_slower_link() -> None:
    leads: list[int] = []
    for seconds in (0.25, 1.25, 2.25):
        graph = schedule(insert(toys.make_chain(12)), make_cost(seconds, latency=0.1))
        leads.append(find_lead(graph, 6))
    assert leads[0] >= 1
    assert leads[0] < leads[1] <= leads[2]


def test_lead_covers_the_read() -> None:
    """Reads are queued: one that is wanted late pushes the ones before it up."""
    graph = schedule(insert(toys.make_chain(12)), make_cost(0.4, latency=0.75))
    # MARGIN * (0.4 + 0.75) = 2.3 seconds, of nodes of one second.
    assert [find_lead(graph, index) for index in range(6)] == [3] * 6


def test_slow_link_starts_everything_at_the_top_in_the_order_of_the_waits() -> None:
    graph = schedule(insert(toys.make_chain(4)), make_cost(1e9))
    first = [node for node in graph.backward.graph.nodes if node.op == "call_function"][:4]
    assert [str(node.args[0]) for node in first] == [f"offload_layer{i}" for i in (3, 2, 1, 0)]
    assert all(node.target is PREFETCH for node in first)


def test_prefetch_stays_between_ticket_and_wait(zoo_graph: TrainingGraph) -> None:
    insert(zoo_graph)
    for seconds in (0.0, 0.5, 1e9):
        graph = schedule(toys.copy_graph(zoo_graph), make_cost(seconds, latency=seconds))
        for node in prefetches(graph):
            assert node.args[0] < node < find_wait(node)


def test_order_of_waits_stays(zoo_graph: TrainingGraph) -> None:
    insert(zoo_graph)
    before = names_of(zoo_graph.backward.graph, WAIT)
    schedule(zoo_graph, make_cost(3.0))
    assert names_of(zoo_graph.backward.graph, WAIT) == before


def find_inflight_peak(graph: fx.Graph) -> int:
    live = peak = 0
    for node in graph.nodes:
        if node.target is PREFETCH:
            live += count_bytes(find_wait(node).meta["val"])
            peak = max(peak, live)
        elif node.target is WAIT:
            live -= count_bytes(node.meta["val"])
    assert live == 0
    return peak


@pytest.mark.parametrize("limit", [1, NBYTES, 2 * NBYTES, 3 * NBYTES + 1])
def test_inflight_limit(limit: int) -> None:
    """One transfer may be larger than the limit: it then goes alone."""
    graph = schedule(insert(toys.make_chain(8)), make_cost(1e9), max_inflight_bytes=limit)
    expected = max(1, limit // NBYTES) * NBYTES
    assert find_inflight_peak(graph.backward.graph) == expected


@pytest.mark.parametrize("seconds", [1e-6, 1.0, 1e9])
@pytest.mark.parametrize("times", [2, 4])
def test_symbolic_sizes_are_computed_before_the_wait(
    fresh_dynamo: None, seconds: float, times: int
) -> None:
    def function(x: Tensor) -> Tensor:
        h = (x @ toys.WEIGHT).tanh()
        return torch.cat([h] * times).sin().sum()

    graph = toys.trace_dynamic(function)
    before = toys.copy_graph(graph)
    schedule(insert(graph), make_cost(seconds))
    for rows in (8, 5):
        toys.assert_same_step(before, graph, sizes=dict.fromkeys(toys.find_symbols(graph), rows))


# --- both ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [sink_releases, advance_prefetches])
def test_graph_without_transfers_is_untouched(run: Callable[..., None]) -> None:
    graph = toys.make_chain(3)
    before = toys.describe(graph.forward.graph), toys.describe(graph.backward.graph)
    options = {"max_inflight_bytes": 1} if run is advance_prefetches else {}
    run(graph, cost=make_cost(1.0), **options)
    assert (toys.describe(graph.forward.graph), toys.describe(graph.backward.graph)) == before


def test_running_twice_changes_nothing_more() -> None:
    graph = schedule(insert(toys.make_chain(8)), make_cost(0.9))
    before = toys.describe(graph.forward.graph), toys.describe(graph.backward.graph)
    schedule(graph, make_cost(0.9))
    assert (toys.describe(graph.forward.graph), toys.describe(graph.backward.graph)) == before


def test_zoo_computes_the_same_bits(zoo_graph: TrainingGraph) -> None:
    insert(zoo_graph)
    for seconds, limit in ((0.0, 1), (1.0, 2048), (1e9, UNLIMITED)):
        graph = toys.copy_graph(zoo_graph)
        schedule(graph, make_cost(seconds), max_inflight_bytes=limit)
        toys.assert_same_step(zoo_graph, graph)


@settings(deadline=None, max_examples=100)
@given(
    toys.random_graphs(),
    st.floats(0, 10),
    st.floats(0, 10),
    st.integers(1, 1000),
)
def test_random_graphs_stay_legal_and_compute_the_same_bits(
    graph: TrainingGraph, seconds: float, latency: float, limit: int
) -> None:
    before = toys.copy_graph(graph)
    insert(graph)
    schedule(graph, make_cost(seconds, 100, latency=latency), max_inflight_bytes=limit)
    sizes = [count_bytes(find_wait(node).meta["val"]) for node in prefetches(graph)]
    assert find_inflight_peak(graph.backward.graph) <= max([limit, *sizes])
    toys.assert_same_step(before, graph)
