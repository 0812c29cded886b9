"""Inductor's scheduler: the order of its nodes, and which loops it fuses."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Collection, Generator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import networkx as nx
from torch import fx
from torch._inductor import custom_graph_pass
from torch._inductor.virtualized import V
from torch._ops import OpOverload

from fxoffload.graph import is_view
from fxoffload.torch_internals.lowering import runs_alone

_REGION = "mutation_region_id"  # Under which Inductor's patterns look for it in meta.
# torch 2.11 has no class of its own for passes of the scheduler.
_PassOfTorch: Any = getattr(
    custom_graph_pass, "CustomSchedulerPass", custom_graph_pass.CustomGraphPass
)


class _SchedulerPass(_PassOfTorch):
    """A pass over the nodes of Inductor's scheduler, for graphs with one of `ops` alone."""

    def __init__(self, ops: Collection[OpOverload]) -> None:
        self.ops = ops

    def __call__(self, nodes: list[Any]) -> list[Any]:
        """`nodes` after `arrange`."""
        if not any(getattr(node.node, "op_overload", None) in self.ops for node in nodes):
            return nodes
        return self.arrange(nodes)

    @abstractmethod
    def arrange(self, nodes: list[Any]) -> list[Any]:
        """The nodes of a graph with one of the ops, in the order that they shall have."""

    def uuid(self) -> str:
        """Part of the keys of Inductor's caches."""
        return f"fxoffload.{type(self).__name__} {sorted(map(str, self.ops))}"

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """As OffloadPartitioner's."""
        return str, (self.uuid(),)


class CountedByGraph(_SchedulerPass):
    """Lets Inductor count its nodes by the positions in the graph of what they compute.

    It counts them as it makes them, and some loops it makes when their first reader asks for them:
    these would stand behind transfers that were planned to follow them. Each call, such as a matrix
    product, takes what is behind it CALL counts further on: see fuse_between_calls. Source:
    torch._inductor.scheduler (compute_ancestors), torch._inductor.config._pre_fusion_custom_pass.
    """

    CALL = 2**32  # More than any graph has nodes.

    def arrange(self, nodes: list[Any]) -> list[Any]:
        """`nodes` in the order that they had."""
        graph: fx.Graph = V.graph.module.graph  # pyright: ignore[reportAssignmentType]
        indices = {node: index for index, node in enumerate(graph.nodes)}
        positions: list[int] = []
        calls: list[int] = []
        for node in nodes:
            origins = {o for single in node.get_nodes() for o in single.node.get_origins()}
            # A view stands anywhere behind what it views.
            makers = [origin for origin in origins if not is_view(origin)]
            before = positions[-1] if positions else 0
            positions.append(max((indices.get(maker, 0) for maker in makers), default=before))
            if _is_call(node) and getattr(node.node, "op_overload", None) not in self.ops:
                calls.append(positions[-1])
        calls.sort()
        for node, position in zip(nodes, positions, strict=True):
            node.min_order = position + self.CALL * bisect_left(calls, position)
            node.max_order = node.min_order
        return nodes


def _is_call(node: Any) -> bool:
    """Whether Inductor calls something for a node of its scheduler."""
    from torch._inductor.ir import MultiOutput  # A slow import, which compiling needs anyway.

    # Results of a call are nodes of their own behind it.
    return node.is_extern() and not isinstance(node.node, MultiOutput)


@contextmanager
def fuse_between_calls() -> Generator[None, None, None]:
    """Within, Inductor fuses no loops between which CountedByGraph met a call.

    By itself it fuses a loop with any that reads its result or, up to 64 counts apart, with one
    that reads what it reads. It runs the two in one place: what the earlier reads is kept for the
    later, or the later makes its result too soon. Source: torch._inductor.choices.InductorChoices.
    """
    choices: Any = V.choices
    kind: Any = type(choices)

    class Choices(kind):
        """Those that were made before, and this one."""

        @staticmethod
        def can_fuse(scheduler: Any, node1: Any, node2: Any, shared_data_score: int) -> bool:
            counts = {
                count // CountedByGraph.CALL
                for node in (node1, node2)
                for count in (node.min_order, node.max_order)
            }
            return len(counts) == 1 and choices.can_fuse(scheduler, node1, node2, shared_data_score)

    with V.set_choices_handler(Choices()):
        yield


class FusedAtLast(_SchedulerPass):
    """Lets each fused loop run where the last of its nodes stands, everything else in its order.

    Inductor lets it run where the first one stands, and pulls up all that it needs: prefetches
    would meet their waits. Source: torch._inductor.scheduler,
    torch._inductor.config._post_fusion_custom_pass.
    """

    def arrange(self, nodes: list[Any]) -> list[Any]:
        """`nodes` in topological order; of those that are ready, the first in the graph first."""
        makers = {name: node for node in nodes for name in node.get_buffer_names()}
        graph = nx.DiGraph()
        graph.add_nodes_from(nodes)
        for node in nodes:
            for dependency in node.unmet_dependencies:
                maker = makers.get(dependency.name)
                if maker is not None and maker is not node:
                    graph.add_edge(maker, node)
        return list(nx.lexicographical_topological_sort(graph, key=attrgetter("max_order")))


def mark_regions(graph: fx.Graph, ops: Collection[OpOverload]) -> None:
    """Divide `graph` into regions across which Inductor's patterns match nothing.

    It divides at mutations, by marks that are made before the graph is partitioned; where none of
    `ops` is put in, it is left to make them anew. With the ops, every call divides, a matrix
    product as well: else one addmm is made of mm and an add far behind it, in the place of the add,
    and what the gradient of a tied embedding reads stays in memory to the end of the backward.
    Source: torch._inductor.pattern_matcher.compute_mutation_region_ids.
    """
    from torch._inductor.pattern_matcher import is_mutation_op  # A slow import.

    divides = any(node.target in ops for node in graph.nodes)
    region = 0
    for node in graph.nodes:
        node.meta.pop(_REGION, None)
        if divides:
            region += is_mutation_op(node) or runs_alone(node)
            node.meta[_REGION] = region
