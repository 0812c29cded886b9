"""Footprint: which storages of a graph are in memory, and how long, once loops are fused.

A call is a node for which Inductor calls a library, such as a matrix product; all other nodes are
loops. A result that only loops read is assumed to stay in registers: Inductor fuses its loop with
those, or recomputes it in each of them, unless that reads too much. Its inputs then live until
those loops have run. A result that a call reads through a view is stored when that call runs; loops
before the call recompute it. Reads `meta["val"]`; changes nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from operator import getitem

import networkx as nx
import torch
from torch import fx

from fxoffload.cost import CostModel
from fxoffload.graph import (
    find_maker,
    get_op_name,
    get_output,
    get_results,
    get_tensor,
    is_reduction,
    is_scatter,
    is_view,
)
from fxoffload.passes.lifetimes import build_alias_graph
from fxoffload.torch_internals import find_store_policy, runs_alone
from fxoffload.torch_internals.tensor_sizes import count_bytes


@dataclass(frozen=True, slots=True)
class Loop:
    """The loop that computes one result: the storages that it reads, and its nodes."""

    reads: frozenset[fx.Node]
    nodes: frozenset[fx.Node]

    def count_ops(self) -> int:
        """The number of ops as Inductor counts them: reads and constants count too."""
        arguments = {
            argument
            for node in self.nodes
            for argument in node.args
            if isinstance(argument, int | float)
        }
        return len(self.reads) + len(self.nodes) + len(arguments)


class Footprint:
    """Which storages of a graph are in memory, and until when.

    The root of a storage is the first node that has it. roots: the root of each node's storage.
    members: by root, all nodes that share the storage. in_memory: the roots whose storages are
    written to memory. last_use: by root, the position of the last loop or call that reads the
    storage, also to recompute a result that stays in registers.
    """

    def __init__(self, graph: fx.Graph, *, fuses: bool) -> None:
        self.nodes = list(graph.nodes)
        self.position = {node: index for index, node in enumerate(self.nodes)}
        self._fuses = fuses
        self._views = {node for node in self.nodes if is_view(node)}
        self._results = {node for node in get_results(graph) if node is not None}
        self._output = get_output(graph)
        self.members: dict[fx.Node, list[fx.Node]] = {}
        self.roots: dict[fx.Node, fx.Node] = {}
        for component in nx.connected_components(build_alias_graph(graph)):
            root = min(component, key=self.position.__getitem__)
            self.members[root] = sorted(component, key=self.position.__getitem__)
            self.roots.update(dict.fromkeys(component, root))
        self._readers = {root: self._find_readers(root) for root in self.members}
        # By root: the position from which the storage is in memory. Readers before it recompute it.
        self._stored: dict[fx.Node, int] = {}
        # By root: the storages in memory that it is computed from, and the loop that does it.
        self._sources: dict[fx.Node, frozenset[fx.Node]] = {}
        self._loops: dict[fx.Node, Loop] = {}
        self._realized: set[fx.Node] = set()  # Roots that no other loop recomputes.
        self._calls = {node for node in self.nodes if self._is_call(node)}
        self._call_positions = [self.position[node] for node in self.nodes if node in self._calls]
        roots = sorted(self.members, key=self.position.__getitem__)
        for root in roots:
            self._sources[root], self._loops[root] = self._find_loop(root)
            self._stored[root] = self._find_stored(root)
        self._computed: dict[fx.Node, int] = {}  # By root: the last position that computes it.
        self.last_use: dict[fx.Node, int] = {}
        for root in reversed(roots):
            self._computed[root], self.last_use[root] = self._find_last_uses(root)
            if root in self._realized and self._is_divided(root, self._computed[root]):
                self._stored[root] = self._computed[root] = self.born(root)
        self.in_memory = {root for root in roots if self._stored[root] < len(self.nodes)}

    def born(self, root: fx.Node) -> int:
        """Position of the node that computes the storage of `root`."""
        return self.position[find_maker(root)]

    def nbytes(self, root: fx.Node) -> int:
        """Bytes of the storage of `root`."""
        tensor = get_tensor(root)
        return 0 if tensor is None else count_bytes(tensor)

    def estimate_seconds(self, cost: CostModel) -> list[float]:
        """Seconds of each node, in the order of the graph."""
        traffic = dict.fromkeys(self.nodes, 0)
        masks = dict.fromkeys(self.nodes, 0.0)
        for root, sources in self._sources.items():
            if root in self.in_memory and root.op == "call_function":
                maker = find_maker(root)
                # A node with several results reads its operands once.
                reads = [] if traffic[maker] else list(sources)
                traffic[maker] += sum(map(self.nbytes, reads)) + self.nbytes(root)
                if maker not in self._calls:
                    loaded = sum(map(self._count_bools, reads))
                    masks[maker] += cost.mask_seconds(self._count_bools(root), loaded)
        return [
            0.0
            if node in self._views
            else cost.node_seconds(node, traffic[node], mask_seconds=masks[node])
            for node in self.nodes
        ]

    def find_names(self) -> tuple[str, ...]:
        """By position: the name of the node before which a transfer at this position is inserted.

        A later pass may erase a view or a dead node, so the next node that is neither is named.
        """
        names: list[str] = []
        alive: set[fx.Node] = set()
        name = self.nodes[-1].name
        for node in reversed(self.nodes):
            if node.op == "output" or node.is_impure() or not alive.isdisjoint(node.users):
                alive.add(node)
                name = name if node in self._views else node.name
            names.append(name)
        return tuple(reversed(names))

    def _count_bools(self, root: fx.Node) -> int:
        tensor = get_tensor(root)
        return self.nbytes(root) if tensor is not None and tensor.dtype == torch.bool else 0

    def _is_call(self, node: fx.Node) -> bool:
        return node.op == "call_function" and (not self._fuses or runs_alone(node))

    def _find_readers(self, root: fx.Node) -> list[fx.Node]:
        users = {user for member in self.members[root] for user in member.users}
        return [user for user in users if user not in self._views]

    def _find_stored(self, root: fx.Node) -> int:
        """The position from which the storage of `root` is in memory, as Inductor decides.

        That is where it is computed, its first call, or the number of nodes for never.
        """
        if root.op != "call_function":
            return 0 if root.op == "placeholder" else len(self.nodes)
        maker, readers = find_maker(root), self._readers[root]
        born = self.position[maker]
        if maker in self._calls or is_reduction(maker) or is_scatter(maker):
            return born
        if self._results & set(self.members[root]):
            return born
        if self._is_too_much(root, reused=len(readers) > 1):
            self._realized.add(root)
            divided = any(self._is_divided(root, self.position[reader]) for reader in readers)
            if divided or self._is_reduced_for(readers):
                return born
        # Inductor looks at direct users only: not at a call that reads through a view.
        if len(self._loops[root].reads) > 1 and any(
            user in self._calls for user in root.users if user not in self._views
        ):
            return born
        calls = (self.position[reader] for reader in readers if reader in self._calls)
        return min(calls, default=len(self.nodes))

    def _is_too_much(self, root: fx.Node, *, reused: bool) -> bool:
        """Whether Inductor would store `root` rather than recompute it in its readers.

        reused: whether several nodes read it.
        """
        tensor = get_tensor(root)
        if tensor is None:
            return False
        policy = find_store_policy(tensor.device)
        loop = self._loops[root]
        reads, ops = len(loop.reads), loop.count_ops()
        if not reused:
            return reads > 1 and (reads > policy.reads or ops > policy.ops)
        is_expensive = any(get_op_name(node) in policy.expensive_ops for node in loop.nodes)
        return is_expensive or reads > policy.reused_reads or ops > policy.ops

    def _is_divided(self, root: fx.Node, position: int) -> bool:
        """Whether a call stands between the maker of `root` and `position`; if not, they fuse."""
        calls = self._call_positions
        return bisect_left(calls, self.born(root)) < bisect_left(calls, position)

    def _is_reduced_for(self, readers: Sequence[fx.Node]) -> bool:
        """Whether one of `readers` depends on a reduction that another one computes.

        No one loop computes both. Example: a softmax that is written out sums its exponentials, and
        then divides them by the sum.
        """
        last = max(self.position[reader] for reader in readers)
        found = {reader for reader in readers if is_reduction(reader)}
        queue = list(found)
        while queue:
            for user in queue.pop().users:
                if user in readers:
                    return True
                if user not in found and self.position[user] < last:
                    found.add(user)
                    queue.append(user)
        return False

    def _is_stored_for(self, reader: fx.Node, root: fx.Node) -> bool:
        return self._stored[root] <= self.position[reader]

    def _find_loop(self, root: fx.Node) -> tuple[frozenset[fx.Node], Loop]:
        """The storages in memory that computing `root` reads, and the loop that computes it."""
        sources: set[fx.Node] = set()
        maker = find_maker(root)
        reads: set[fx.Node] = set()
        nodes = {maker}
        for operand in maker.all_input_nodes:
            source = self.roots.get(operand)
            if source is None:
                continue
            if self._is_stored_for(maker, source):
                sources.add(source)
                reads.add(source)
                continue
            sources |= self._sources[source]
            if source in self._realized:
                reads.add(source)
            else:
                reads |= self._loops[source].reads
                nodes |= self._loops[source].nodes
        return frozenset(sources), Loop(frozenset(reads), frozenset(nodes))

    def _find_last_uses(self, root: fx.Node) -> tuple[int, int]:
        """The last positions at which `root` is computed, and at which it is read from memory."""
        computed = read = self.born(root)
        for reader in self._readers[root]:
            if reader is self._output:
                continue
            results = [self._computed[result] for result in self._find_results(reader)]
            last = max([self.position[reader], *results])
            if self._is_stored_for(reader, root):
                read = max(read, last)
            else:
                computed = max(computed, last)
        return computed, max(read, computed)

    def _find_results(self, node: fx.Node) -> list[fx.Node]:
        """The roots of the storages that `node` makes."""
        items = [node, *(user for user in node.users if user.target is getitem)]
        return [item for item in items if self.roots.get(item) is item]
