"""Insertion: add the four ops for each moved value of a plan, each op at a legal place.

    forward, relu saved                       after insert_transfers
    relu = aten.relu(mm)                      relu = aten.relu(mm)
    sum  = aten.sum(relu)                     offload_relu = fxoffload.offload(relu, ...)
    return (sum, relu)                        sum  = aten.sum(relu)
                                              release = fxoffload.release(offload_relu, relu)
                                              return (sum, offload_relu)

    backward                                  after insert_transfers
    (relu, tangents_1)                        (offload_relu, tangents_1)
    ge  = aten.ge(relu, 0)                    prefetch = fxoffload.prefetch(offload_relu)
    mul = aten.mul(ge, tangents_1)            wait_relu = fxoffload.wait(offload_relu, ...)
                                              ge  = aten.ge(wait_relu, 0)
                                              mul = aten.mul(ge, tangents_1)

Each storage has one transfer: if several saved values share a storage, one ticket replaces them
all, and `as_strided` on the restored base recreates each of them. The offload stands after the
node that makes the storage and the loops that are fused with it, the release after the last
reader, the wait before the first reader, and the prefetch there or earlier. What the ops do, and
when, is decided while the program runs (`fxoffload.schedule`). Relies on `meta["val"]` of forward
nodes; sets it on every node that it makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx

from fxoffload.errors import PlanError
from fxoffload.graph import (
    TrainingGraph,
    find_views,
    get_output,
    get_results,
    is_view,
    require_tensor,
)
from fxoffload.ops import OFFLOAD, OPS, PREFETCH, RELEASE, WAIT
from fxoffload.passes.saved_views import replay_view, sink_views
from fxoffload.planner.plan import SavedValue, Tier
from fxoffload.torch_internals import SymbolicInts, copy_saved_meta, runs_alone, set_results

# Inductor fuses no loops that are more nodes apart than this. Source: torch._inductor.scheduler
# (Scheduler.are_long_distant_nodes).
FUSION_REACH = 64


def insert_transfers(
    graph: TrainingGraph,
    values: Sequence[SavedValue],
    *,
    store: str,
    key: str = "",
    tier: Tier = "nvme",
    fuses: bool = False,
    prefetched_before: Mapping[str, str] | None = None,
) -> None:
    """Add offload, release, prefetch and wait for each of `values` that may move.

    store: the key of the store. key: identifies this graph to the runtime. tier: where values go as
    long as no schedule says otherwise. fuses: whether Inductor fuses loops. prefetched_before: by
    value, the backward node in front of which its prefetch stands, if that comes before the wait.
    Raises PlanError for a value that the graph does not save.
    """
    movable = [value for value in values if value.has_ops]
    if not movable:
        return
    nodes = {node.name: node for node in graph.forward.graph.nodes}
    placeholders = {n.name: n for n in graph.backward.graph.find_nodes(op="placeholder")}
    symbols = SymbolicInts(graph.backward.graph)
    waits: list[tuple[fx.Node, str]] = []
    for value in movable:
        missing = [
            name
            for name in (value.name, *value.members)
            if name not in nodes or (name in value.members and name not in placeholders)
        ]
        if missing:
            raise PlanError(f"{value.name!r} cannot move: the graph saves no {missing}")
        root = nodes[value.name]
        members = [nodes[name] for name in value.members]
        base = _gather(graph.forward.graph, root) if value.gathered else root
        place = _find_place(base, fuses=fuses)
        ticket = _insert_offload(place, base, root, value, tier, store, key)
        _insert_release(graph.forward.graph, ticket, base)
        _replace_results(graph, members, ticket)
        wait = _insert_prefetch(
            graph, base, root, ticket, members, placeholders, symbols, owned=value.owned
        )
        waits.append((wait, (prefetched_before or {}).get(value.name, "")))
    _move_prefetches(graph.backward.graph, waits)
    _erase_dead_views(graph.forward.graph)


def _gather(graph: fx.Graph, window: fx.Node) -> fx.Node:
    """Copy `window`, a small view, so that the storage behind it can be freed in the forward."""
    with graph.inserting_after(window):
        # The copy is dense, in the order of the window's strides: kernels choose their path by
        # layout, and the results of another path may differ in the last bits.
        copy = graph.call_function(torch.ops.aten.clone.default, (window,))
    copy.meta = {"val": require_tensor(window).clone()}
    return copy


def _insert_offload(
    place: fx.Node,
    base: fx.Node,
    root: fx.Node,
    value: SavedValue,
    tier: Tier,
    store: str,
    key: str,
) -> fx.Node:
    duplicate_bytes = max(0, value.member_bytes - value.nbytes)
    with place.graph.inserting_before(place):
        ticket = place.graph.create_node(
            "call_function",
            OFFLOAD,
            (base, store, value.name, tier, value.owned, duplicate_bytes) + ((key,) if key else ()),
            name=f"offload_{root.name}",
        )
    ticket.meta = {"val": _make_fake_ticket(base)}
    return ticket


def _find_place(base: fx.Node, *, fuses: bool) -> fx.Node:
    """The node before which the offload of `base` is inserted.

    Inductor stores a value where an op reads it; loops after that op load the stored value and are
    not fused with the loop that computes it. So the offload goes before the next call, and the
    loops up to there can be fused. It goes before an earlier node in two cases: a view of
    `base` itself, as Inductor would store another copy for it, and a node so far after the last
    reader that its loop would not be fused (FUSION_REACH).
    """
    place = _last_sibling(base).next
    if not fuses:
        return place
    last = max([base, *_find_readers(base)])
    behind = 0
    while place.op == "call_function" and (place.target in OPS or not runs_alone(place)):
        behind += place > last and place.target not in OPS
        if behind > FUSION_REACH or (is_view(place) and base in place.all_input_nodes):
            break
        place = place.next
    return place


def _last_sibling(node: fx.Node) -> fx.Node:
    """`node`, or the last placeholder if it is one: placeholders must stay together at the top."""
    while node.op == "placeholder" and node.next.op == "placeholder":
        node = node.next
    return node


def _insert_release(graph: fx.Graph, ticket: fx.Node, base: fx.Node) -> None:
    last = max([ticket, *_find_readers(base)])
    with graph.inserting_after(last):
        release = graph.call_function(RELEASE, (ticket, base))
    release.meta = {"val": None}


def _replace_results(graph: TrainingGraph, members: list[fx.Node], ticket: fx.Node) -> None:
    """Replace the first member among the results by the ticket, and remove the other members."""
    forward = graph.forward.graph
    results = get_results(forward)
    old = get_output(forward).args[0]
    assert isinstance(old, list | tuple)
    kept: list[int] = []
    values: list[object] = []
    placed = False
    for index, (node, constant) in enumerate(zip(results, old, strict=True)):
        if index >= graph.num_outputs and node in members:
            if placed:
                continue
            copy_saved_meta(members[0], ticket)
            node, placed = ticket, True
        kept.append(index)
        values.append(constant if node is None else node)
    set_results(forward, values, kept)


def _insert_prefetch(
    graph: TrainingGraph,
    base: fx.Node,
    root: fx.Node,
    ticket: fx.Node,
    members: list[fx.Node],
    placeholders: dict[str, fx.Node],
    symbols: SymbolicInts,
    *,
    owned: bool,
) -> fx.Node:
    """Returns the wait."""
    backward = graph.backward.graph
    olds = [placeholders[member.name] for member in members]
    with backward.inserting_before(olds[0]):
        new = backward.create_node("placeholder", ticket.name, name=ticket.name)
    new.meta = dict(ticket.meta)

    first = min(sink_views(backward, olds))
    tensor = require_tensor(base)
    with backward.inserting_before(first):
        size = [symbols.emit(item) for item in tensor.size()]
        stride = [symbols.emit(item) for item in tensor.stride()]
        prefetch = backward.call_function(PREFETCH, (new,))
        prefetch.meta = {"val": None}
        y = backward.create_node(
            "call_function",
            WAIT,
            (new, size, stride, tensor.dtype, tensor.device) + (() if owned else (False,)),
            name=f"wait_{root.name}",
        )
        y.meta = {"val": _make_fake_copy(tensor)}
        for member, old in zip(members, olds, strict=True):
            view = y if member is root else replay_view(backward, y, base, member, symbols)
            old.replace_all_uses_with(view)
            backward.erase_node(old)
    return y


def _move_prefetches(graph: fx.Graph, waits: Sequence[tuple[fx.Node, str]]) -> None:
    """Put the prefetch of each wait in front of the node of this name.

    In the order of the waits: several prefetches in front of one node queue in order of use.
    """
    nodes = {node.name: node for node in graph.nodes}
    prefetches = {
        node.args[0]: node for node in graph.find_nodes(op="call_function", target=PREFETCH)
    }
    for wait, name in sorted(waits, key=lambda pair: pair[0]):
        place = nodes.get(name)
        if place is not None and place < wait:
            place.prepend(prefetches[wait.args[0]])


def _find_readers(base: fx.Node) -> list[fx.Node]:
    """Nodes other than views and the output that read the storage of `base`."""
    views = find_views([base])
    return [
        user
        for node in (base, *views)
        for user in node.users
        if user not in views and user.op != "output"
    ]


def _erase_dead_views(graph: fx.Graph) -> None:
    """Erase views without a reader: saved views that a ticket replaced, and splits of these."""
    for node in reversed([node for node in graph.nodes if is_view(node)]):
        if not node.users:
            graph.erase_node(node)


def _make_fake_ticket(node: fx.Node) -> torch.Tensor:
    with require_tensor(node).fake_mode:  # pyright: ignore[reportAttributeAccessIssue]
        return torch.empty(1, dtype=torch.int64, device="cpu")


def _make_fake_copy(tensor: torch.Tensor) -> torch.Tensor:
    with tensor.fake_mode:  # pyright: ignore[reportAttributeAccessIssue]
        return torch.empty_strided(
            tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device
        )
