"""What fxoffload relies on in Inductor's scheduler: the order of nodes, and what is fused."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compiling import LOOP, MM, OURS, run_compiled, trace_only, two_outputs
from torch import Tensor, fx
from torch._inductor.virtualized import V
from toys import Sketch, aten

from fxoffload.ops import OPS, PREFETCH, WAIT
from fxoffload.torch_internals import CountedByGraph, FusedAtLast, mark_regions


class FakeNode:
    """A node of Inductor's scheduler: the last of its places in the graph, and what it needs."""

    def __init__(self, name: str, max_order: int, *needs: str, op: object = None) -> None:
        self.name = name
        self.max_order = max_order
        self.unmet_dependencies = [SimpleNamespace(name=need) for need in needs]
        self.node = SimpleNamespace(op_overload=op)

    def get_buffer_names(self) -> list[str]:
        return [self.name]


def order(*nodes: FakeNode) -> list[str]:
    return [node.name for node in FusedAtLast([WAIT])(list(nodes))]


def test_fused_loops_run_where_their_last_node_stands() -> None:
    fused, product = FakeNode("fused", 9, "wait"), FakeNode("product", 5, "input")
    wait = FakeNode("wait", 8, op=WAIT)
    assert order(wait, fused, product) == ["product", "wait", "fused"]
    # A later place does not go before what needs it.
    assert order(wait, FakeNode("reader", 3, "fused"), fused) == ["wait", "fused", "reader"]


@pytest.mark.parametrize("kind", [FusedAtLast, CountedByGraph])
def test_the_order_pickles_as_its_identity(kind: Callable[..., Any]) -> None:
    """AOTAutograd's cache key is a pickle of Inductor's whole configuration."""
    found = kind([WAIT])
    assert pickle.loads(pickle.dumps(found)) == found.uuid() != kind([]).uuid()
    assert FusedAtLast([]).uuid() != CountedByGraph([]).uuid()


def test_graphs_without_transfers_keep_inductors_order() -> None:
    assert order(FakeNode("fused", 9), FakeNode("product", 5)) == ["fused", "product"]


class LoweredNode:
    """A node of Inductor's scheduler that has not been counted yet."""

    def __init__(self, *origins: fx.Node, extern: bool = False, op: object = None) -> None:
        self.min_order = self.max_order = -1
        self.node = SimpleNamespace(op_overload=op, get_origins=lambda: set(origins))
        self._extern = extern

    def get_nodes(self) -> list[LoweredNode]:
        return [self]

    def is_extern(self) -> bool:
        return self._extern


def test_calls_make_loops_far_apart_and_transfers_do_not() -> None:
    from torch._inductor.scheduler import Scheduler

    def are_far(one: LoweredNode, other: LoweredNode) -> bool:
        return Scheduler.are_long_distant_nodes(None, one, other)  # pyright: ignore

    graph = fx.Graph()
    x = graph.placeholder("x")
    before, product, between, wait, behind = (
        graph.call_function(op, (x,))
        for op in (aten.sum.default, aten.mm.default, aten.sum.default, WAIT, aten.sum.default)
    )
    nodes = [
        LoweredNode(behind),  # Made before its turn.
        LoweredNode(before),
        LoweredNode(product, extern=True),
        LoweredNode(between),
        LoweredNode(wait, extern=True, op=WAIT),
    ]
    with V.set_graph_handler(SimpleNamespace(module=SimpleNamespace(graph=graph))):
        assert CountedByGraph([WAIT])(nodes) == nodes
    orders = [node.min_order for node in nodes]
    assert sorted(orders) == [orders[index] for index in (1, 2, 3, 4, 0)]
    assert are_far(nodes[1], nodes[3]), "a product stands between them"
    assert are_far(nodes[1], nodes[0])
    assert not are_far(nodes[3], nodes[0]), "a wait takes no part in what loops may do"


@pytest.mark.slow
def test_inductor_calls_the_pass_behind_fusion(find_order: Callable[..., list[str]]) -> None:
    """Both sums are one loop; by default it runs in front of the op that it does not need."""

    def compute(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        product = x @ x
        first = product.sum(0)
        bins = torch.histc(x, 3)
        return first, bins, (x + product).sum(0)

    calls = (MM, LOOP, OURS)
    assert find_order(compute, arranges=False, calls=calls) == [MM, LOOP, OURS, OURS]
    assert find_order(compute, arranges=True, calls=calls) == [MM, OURS, LOOP, OURS]


@pytest.mark.slow
def test_loops_stand_where_the_graph_has_them(find_order: Callable[..., list[str]]) -> None:
    """By default a loop that a product reads through a view is made, and runs, right before it."""

    def compute(x: Tensor) -> Tensor:
        loop = x * 2
        product = x @ x
        return loop.t() @ product

    assert find_order(compute, arranges=False) == [MM, LOOP, MM]
    assert find_order(compute, arranges=True) == [LOOP, MM, MM]


@pytest.mark.slow
def test_loops_far_apart_in_the_graph_are_not_fused(find_order: Callable[..., list[str]]) -> None:
    """The number of buffers between them does not matter."""

    def compute(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = x.sum(0)
        product = x @ x
        scaled = product
        for number in range(70):
            scaled = scaled * (number + 2)
        return first, product, (scaled * x).sum(0)

    assert find_order(compute, arranges=False) == [MM, LOOP]
    assert find_order(compute, arranges=True) == [LOOP, MM, LOOP]


@pytest.mark.slow
def test_a_loop_far_behind_is_not_fused_with_what_it_reads(
    find_order: Callable[..., list[str]],
) -> None:
    """By default the sums are made where they are read, and what they sum is kept until then."""

    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        sums = x.sum(1, keepdim=True)
        product = x @ x
        return product, (product - sums).exp()

    assert find_order(compute, arranges=False) == [MM, LOOP]
    assert find_order(compute, arranges=True) == [LOOP, MM, LOOP]


def keep_regions(graph: fx.Graph, ops: Sequence[object]) -> None:
    """In place of mark_regions."""


@pytest.mark.parametrize(
    ("between", "mark", "folded"),
    [
        ("prefetch", keep_regions, True),  # Inductor has not seen it.
        ("prefetch", mark_regions, False),
        ("product", mark_regions, False),  # Of a graph with transfers.
        ("product", lambda graph, ops: mark_regions(graph, []), True),
        ("nothing", mark_regions, True),
    ],
)
def test_inductor_matches_nothing_across_transfers_and_calls(
    between: str, mark: Callable[..., None], folded: bool
) -> None:
    from torch._inductor.fx_passes import post_grad
    from torch._inductor.pattern_matcher import compute_mutation_region_ids

    half = Sketch().backward
    a, b, c = (half.input(name, torch.empty(8, 8)) for name in "abc")
    ticket = half.input("ticket", torch.empty(1, dtype=torch.int64))
    product = half.call(aten.mm.default, a, b)
    add = half.call(aten.add.Tensor, product, c)
    gm = half.finish([add])
    compute_mutation_region_ids(gm.graph)  # As in a joint graph.
    with gm.graph.inserting_before(add if between == "prefetch" else product):
        gm.graph.call_function(PREFETCH, (ticket,))
    if between == "product":
        with gm.graph.inserting_before(add):
            gm.graph.call_function(aten.mm.default, (a, b))
    mark(gm.graph, OPS)
    with V.set_fake_mode(half.mode):
        post_grad.pass_patterns[2].apply(gm)
    found = bool(gm.graph.find_nodes(op="call_function", target=aten.addmm.default))
    assert found is folded


def test_a_partition_has_no_mutation_regions() -> None:
    recorder, _ = run_compiled(two_outputs, trace_only)
    ((forward, backward, _, _),) = recorder.calls
    for node in (*forward.graph.nodes, *backward.graph.nodes):
        assert "mutation_region_id" not in node.meta
