"""Lifetimes: find every storage that the forward saves, from its birth to its last use.

    forward                                   find_saved_values ->
    mm    = aten.mm(x, w)                     SavedValue(name="mm", members=("relu", "t"), ...)
    relu  = aten.relu(mm)                         - one value for each *storage*,
    t     = aten.t(relu)                          - last_use looks through views,
    return (out, relu, t)                         - or `refusal` says why it may not be moved.

Storages are the connected components of an alias graph (networkx), whose nodes are tensors and
whose edges join a view with its source. Reads `meta["val"]`; changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import networkx as nx
import torch
from torch import fx

from fxoffload.errors import MarkError
from fxoffload.graph import (
    TrainingGraph,
    find_alias_sources,
    find_maker,
    find_mutated,
    get_output,
    get_saved,
    get_tensor,
    is_view,
    require_tensor,
)
from fxoffload.marks import KEEP, KEEPING, MOVE, POLICY
from fxoffload.origins import find_origin
from fxoffload.passes.refusals import find_refusal
from fxoffload.planner.plan import KEPT, RETURNED, SavedValue
from fxoffload.torch_internals import (
    find_backward_placeholder,
    find_marks,
)
from fxoffload.torch_internals.tensor_sizes import (
    count_bytes,
    guess_int,
    may_grow,
)

# The saved views of a storage are copied out of it if they have at most this share of its bytes.
GATHER_FRACTION = 0.5
UNREAD = "not read by the backward"
# How many times larger than traced a value of symbolic size may become: `min_bytes` is for those.
GROWTH = 16


def find_saved_values(graph: TrainingGraph, *, min_bytes: int = 1) -> tuple[SavedValue, ...]:
    """One SavedValue for each storage that is saved for the backward, in order of birth.

    Small views of a large storage get one each, see _gather. Values below `min_bytes` get a
    `refusal`, unless the program says that they move, or they may grow beyond it. Positions are
    indices of nodes in each graph.
    Raises MarkError for a value that the program says must move, if it may not.
    """
    forward = graph.forward.graph
    aliases = build_alias_graph(forward)
    positions = {node: index for index, node in enumerate(forward.nodes)}
    saved = [node for node in dict.fromkeys(get_saved(graph)) if get_tensor(node) is not None]
    groups: dict[fx.Node, list[fx.Node]] = {}
    for node in saved:
        root = min(nx.node_connected_component(aliases, node), key=positions.__getitem__)
        groups.setdefault(root, []).append(node)

    backward_aliases = build_alias_graph(graph.backward.graph)
    backward_uses = find_backward_uses(graph, saved, backward_aliases)
    backward = list(graph.backward.graph.nodes)
    mutated = {target for node in forward.nodes for target in find_mutated(node)}
    addressed = find_addressed(graph.backward.graph, backward_aliases)
    values: list[SavedValue] = []
    for root, members in groups.items():
        component = nx.node_connected_component(aliases, root)
        readers = find_readers(component)
        refusal = find_refusal(graph, root, members, component, mutated)
        uses = [use for member in members for use in backward_uses[member]]
        if not uses:
            refusal = UNREAD if refusal in (None, RETURNED) else refusal
        marks = find_value_marks(component, root, (backward[use] for use in uses))
        must_move = bool(marks & {MOVE, POLICY}) and refusal != UNREAD and _tensor_bytes(root) > 0
        if must_move:
            _check_move(root, marks, refusal)
        elif marks & {KEEP, KEEPING}:
            refusal = refusal or KEPT
        born = positions[find_maker(root)]
        first_use, freed = _find_reading(uses)
        value = SavedValue(
            name=root.name,
            members=tuple(member.name for member in members),
            nbytes=_tensor_bytes(root),
            member_bytes=sum(_distinct_bytes(member) for member in members),
            born=born,
            last_use=max((positions[reader] for reader in readers), default=born),
            first_use=first_use,
            freed=freed,
            owned=root.op != "placeholder" and refusal != RETURNED,
            refusal=refusal,
            must_move=must_move,
            origin=find_origin(root),
        )
        gathers = _gather(value, members, backward_uses, positions, addressed)
        values += (_refuse_small(each, root, min_bytes) for each in gathers or (value,))
    return tuple(sorted(values, key=lambda value: (value.born, value.name)))


def find_value_marks(
    component: Iterable[fx.Node], root: fx.Node, readers: Iterable[fx.Node]
) -> frozenset[str]:
    """The marks of a storage, by the names in fxoffload/marks.py.

    Marks of single tensors are on the nodes of `component`: `root` and its views. A `keeping`
    region applies to the values that it computes, and to those that its part of the backward reads.
    readers: the nodes of the backward that read the storage.
    """
    marks = {mark for node in component for mark in find_marks(node)} - {KEEPING}
    covered = any(KEEPING in find_marks(node) for node in (find_maker(root), *readers))
    return frozenset(marks | {KEEPING} if covered else marks)


def _check_move(root: fx.Node, marks: frozenset[str], refusal: str | None) -> None:
    """Raise MarkError if the storage of `root` may not move although its marks require it."""
    mark = MOVE if MOVE in marks else POLICY
    size = f"{_tensor_bytes(root) / 2**20:.1f} MiB"
    if KEEP in marks:
        raise MarkError(
            f"the storage of {root.name} ({size}) is marked by {KEEP} and by {mark}: remove one of "
            "the two marks"
        )
    if refusal is not None:
        raise MarkError(
            f"{root.name} ({size}) is marked by {mark}, and may not be moved: {refusal}; remove "
            "the mark, or mark the result of another op"
        )


def build_alias_graph(graph: fx.Graph) -> nx.Graph[fx.Node]:
    """The alias graph: nodes are tensors, edges join a view and its source; see the module."""
    aliases: nx.Graph[fx.Node] = nx.Graph()
    for node in graph.nodes:
        if get_tensor(node) is None:
            continue
        aliases.add_node(node)
        aliases.add_edges_from((node, source) for source in find_alias_sources(node))
    return aliases


def find_readers(component: Iterable[fx.Node]) -> set[fx.Node]:
    """Nodes that read the data of a storage: users of its members that are not views."""
    return {
        user
        for node in component
        for user in node.users
        if user.op == "call_function" and not is_view(user)
    }


def find_backward_uses(
    graph: TrainingGraph, saved: Iterable[fx.Node], aliases: nx.Graph[fx.Node]
) -> Mapping[fx.Node, list[int]]:
    """By saved node: the positions of the backward nodes that read it, also through views.

    aliases: the alias graph of the backward. If the backward returns a saved value, the output node
    counts as a reader.
    """
    backward = graph.backward.graph
    positions = {node: index for index, node in enumerate(backward.nodes)}
    placeholders = {node.name: node for node in backward.find_nodes(op="placeholder")}
    output = get_output(backward)
    uses: dict[fx.Node, list[int]] = {}
    for node in saved:
        placeholder = find_backward_placeholder(placeholders, node)
        component = nx.node_connected_component(aliases, placeholder)
        readers = find_readers(component)
        if any(output in member.users for member in component):
            readers.add(output)
        uses[node] = [positions[reader] for reader in readers]
    return uses


def find_addressed(backward: fx.Graph, aliases: nx.Graph[fx.Node]) -> set[str]:
    """Names of the placeholders whose storage an `as_strided` of `backward` reads.

    Its offset counts from the start of the storage, so it can read beyond the placeholder's own
    elements. aliases: the alias graph of `backward`.
    """
    return {
        node.name
        for target in backward.find_nodes(
            op="call_function", target=torch.ops.aten.as_strided.default
        )
        for node in nx.node_connected_component(aliases, target)
        if node.op == "placeholder"
    }


def _gather(
    value: SavedValue,
    members: list[fx.Node],
    uses: Mapping[fx.Node, list[int]],
    positions: Mapping[fx.Node, int],
    addressed: set[str],
) -> tuple[SavedValue, ...]:
    """One value for each saved view, if these are small parts of a large storage; else none.

    Each view is then copied out and moved by itself; without them, the storage moves as a whole.
    """
    if value.refusal is not None or addressed & set(value.members):
        return ()
    nbytes = {member: _tensor_bytes(member) for member in members}
    if sum(nbytes.values()) > GATHER_FRACTION * value.nbytes:
        return ()
    found: list[SavedValue] = []
    for member in members:
        first_use, freed = _find_reading(uses[member])
        window = replace(
            value,
            name=member.name,
            members=(member.name,),
            nbytes=nbytes[member],
            member_bytes=nbytes[member],
            born=positions[member],
            last_use=positions[member],
            first_use=first_use,
            freed=freed,
            gathered=True,
            owned=True,
        )
        found.append(window if window.is_read else replace(window, refusal=UNREAD))
    return tuple(found)


def _find_reading(uses: Sequence[int]) -> tuple[int, int]:
    """`first_use` and `freed` of a value that is read at `uses`; without any, it is never read."""
    return (min(uses), max(uses)) if uses else (0, -1)


def _tensor_bytes(node: fx.Node) -> int:
    return count_bytes(require_tensor(node))


def _refuse_small(value: SavedValue, root: fx.Node, min_bytes: int) -> SavedValue:
    """`value`, refused if it has less than `min_bytes` and may not grow beyond that."""
    least_bytes = 1 if value.must_move else max(min_bytes, 1)
    if may_grow(require_tensor(root)):
        least_bytes = max(1, least_bytes // GROWTH)
    if not value.has_ops or value.nbytes >= least_bytes:
        return value
    owned = root.op != "placeholder"
    return replace(value, refusal="smaller than min_bytes", owned=owned)


def _distinct_bytes(member: fx.Node) -> int:
    """Bytes of the distinct elements of `member`: a dimension of stride 0 repeats them."""
    tensor = require_tensor(member)
    nbytes = count_bytes(tensor)
    if nbytes == 0:
        return 0
    for size, stride in zip(tensor.size(), tensor.stride(), strict=True):
        if stride == 0 and size != 0:
            nbytes //= max(1, guess_int(size))
    return nbytes
