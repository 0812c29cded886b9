"""Control Inductor's scheduler: the order of its nodes, and which loops it fuses."""

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
from fxoffload.ops import RELEASE
from fxoffload.torch_internals.lowering import runs_alone

_REGION = "mutation_region_id"  # The key in `meta` that Inductor's pattern matcher reads.
# torch 2.11 has no separate class for scheduler passes.
_PassOfTorch: Any = getattr(
    custom_graph_pass, "CustomSchedulerPass", custom_graph_pass.CustomGraphPass
)


class _SchedulerPass(_PassOfTorch):
    """A pass over the nodes of Inductor's scheduler; it changes only graphs with one of `ops`."""

    def __init__(self, ops: Collection[OpOverload]) -> None:
        self.ops = ops

    def __call__(self, nodes: list[Any]) -> list[Any]:
        """`arrange(nodes)` if one of them is one of `ops`, else `nodes`."""
        if not any(getattr(node.node, "op_overload", None) in self.ops for node in nodes):
            return nodes
        return self.arrange(nodes)

    @abstractmethod
    def arrange(self, nodes: list[Any]) -> list[Any]:
        """The nodes in the wanted order, for a graph with one of the ops."""

    def uuid(self) -> str:
        """The identity of this pass, which becomes part of the keys of Inductor's caches."""
        return f"fxoffload.{type(self).__name__} {sorted(map(str, self.ops))}"

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """Pickle as `uuid`, for AOTAutograd's cache key, like OffloadPartitioner."""
        return str, (self.uuid(),)


class CountedByGraph(_SchedulerPass):
    """Numbers the nodes of Inductor's scheduler by the positions of their fx nodes in the graph.

    Inductor numbers nodes in the order in which it makes them. It makes some loops only when it
    meets their first reader, so they would be ordered after transfers that the plan puts after
    them. Each call, such as a matrix product, adds CALL to the numbers of all nodes after it: see
    fuse_between_calls. Source: torch._inductor.scheduler (compute_ancestors),
    torch._inductor.config._pre_fusion_custom_pass.
    """

    CALL = 2**32  # More than any graph has nodes.

    def arrange(self, nodes: list[Any]) -> list[Any]:
        """`nodes` in the same order, with new numbers in `min_order` and `max_order`."""
        graph: fx.Graph = V.graph.module.graph  # pyright: ignore[reportAssignmentType]
        indices = {node: index for index, node in enumerate(graph.nodes)}
        positions: list[int] = []
        calls: list[int] = []
        for node in nodes:
            origins = {o for single in node.get_nodes() for o in single.node.get_origins()}
            # The position of a view says nothing: it is anywhere after its source.
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
    """Whether `node` of Inductor's scheduler is a library call."""
    from torch._inductor.ir import MultiOutput  # A slow import, which compiling needs anyway.

    # Each result of a call with several results is another extern node, a MultiOutput.
    return node.is_extern() and not isinstance(node.node, MultiOutput)


@contextmanager
def fuse_between_calls() -> Generator[None, None, None]:
    """A context in which Inductor fuses two loops only if CountedByGraph met no call between them.

    By default Inductor fuses a loop with any loop that reads its result, and with loops up to 64
    numbers apart that read the same storage. The fused loop runs in one place: either the inputs of
    the earlier loop live longer, or the result of the later one is born earlier. Both raise the
    peak. Source: torch._inductor.choices.InductorChoices.
    """
    choices: Any = V.choices
    kind: Any = type(choices)

    class Choices(kind):
        """The present choices, with one more condition for fusing."""

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
    """Puts each fused loop at the position of the last of its nodes, and keeps the other nodes.

    Inductor puts it at the position of the first one, and moves up everything that it depends on,
    also waits, which would then follow right after their prefetches. Source:
    torch._inductor.scheduler, torch._inductor.config._post_fusion_custom_pass.

    A release leaves its value to the store, so it follows every loop that reads the value. A loop
    that was fused across the release would be its last reader, and Inductor would let it write its
    result into the value's memory. Source: SchedulerNode.decide_inplace_update.
    """

    def arrange(self, nodes: list[Any]) -> list[Any]:
        """`nodes` in topological order; among nodes that are ready, in the order of the graph."""
        makers = {name: node for node in nodes for name in node.get_buffer_names()}
        graph = nx.DiGraph()
        graph.add_nodes_from(nodes)
        for node in nodes:
            for dependency in node.unmet_dependencies:
                maker = makers.get(dependency.name)
                if maker is not None and maker is not node:
                    graph.add_edge(maker, node)
        readers: dict[str, list[Any]] = {}
        for node in nodes:
            for dependency in node.unmet_dependencies:
                readers.setdefault(dependency.name, []).append(node)
        for release in filter(_is_release, nodes):
            (value, *_) = (x.get_name() for x in release.node.inputs[1:])
            graph.add_edges_from(
                (reader, release) for reader in readers.get(value, ()) if reader is not release
            )
        return list(nx.lexicographical_topological_sort(graph, key=attrgetter("max_order")))


def _is_release(node: Any) -> bool:
    """Whether `node` of Inductor's scheduler is our op."""
    return getattr(node.node, "op_overload", None) is RELEASE


def mark_regions(graph: fx.Graph, ops: Collection[OpOverload]) -> None:
    """Divide `graph` into regions, so that no pattern of Inductor matches across two of them.

    Inductor marks a new region at each mutation, before the graph is partitioned. A graph without
    `ops` only loses the marks, so that Inductor makes them again. In a graph with `ops`, each call
    starts a region, too, a matrix product included. Otherwise Inductor would merge an mm and an add
    far after it into one addmm at the place of the add; the operands of the gradient of a tied
    embedding would then stay in memory to the end of the backward.
    Source: torch._inductor.pattern_matcher.compute_mutation_region_ids.
    """
    from torch._inductor.pattern_matcher import is_mutation_op  # Imported here, as it is slow.

    divides = any(node.target in ops for node in graph.nodes)
    region = 0
    for node in graph.nodes:
        node.meta.pop(_REGION, None)
        if divides:
            region += is_mutation_op(node) or runs_alone(node)
            node.meta[_REGION] = region
