"""Verification: check the rules of a legal graph. Changes nothing, raises GraphError.

forward   1  every ticket is a result, and is released exactly once
          2  no reader of a released value after its release (views do not read)
          3  nothing writes to a value between its offload and its release
backward  4  every ticket comes in as a placeholder of the same name, and has one prefetch and
             one wait as its only users
          5  the prefetch stands before the wait
          6  size, stride, dtype, device and owner of the wait are those of the offloaded value
both      7  fx's own lint: every argument stands before its user
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx

from fxoffload.errors import GraphError
from fxoffload.graph import (
    TrainingGraph,
    find_mutated,
    find_views,
    get_results,
    is_view,
    require_tensor,
)
from fxoffload.ops import OFFLOAD, PREFETCH, RELEASE, WAIT
from fxoffload.torch_internals.tensor_sizes import hint_int


def verify_transfers(graph: TrainingGraph) -> None:
    """Raise GraphError, naming rule and node, unless both graphs are legal."""
    for part, module in (("forward", graph.forward), ("backward", graph.backward)):
        try:
            module.graph.lint()
        except (RuntimeError, ValueError) as error:
            raise GraphError(f"{part}: {error}") from error
    tickets = _verify_forward(graph)
    _verify_backward(graph, tickets)


def _verify_forward(graph: TrainingGraph) -> dict[str, fx.Node]:
    forward = graph.forward.graph
    saved = set(get_results(forward)[graph.num_outputs :])
    tickets: dict[str, fx.Node] = {
        node.name: node for node in forward.find_nodes(op="call_function", target=OFFLOAD)
    }
    releases = forward.find_nodes(op="call_function", target=RELEASE)
    for name, ticket in tickets.items():
        if ticket not in saved:
            raise GraphError(f"forward: ticket {name} is not saved for the backward")
        mine = [node for node in releases if node.args[0] is ticket]
        if len(mine) != 1:
            raise GraphError(f"forward: ticket {name} is released {len(mine)} times, not once")
        _verify_release(ticket, mine[0])
    return tickets


def _verify_release(ticket: fx.Node, release: fx.Node) -> None:
    base = release.args[1]
    assert isinstance(base, fx.Node)
    if base is not ticket.args[0]:
        raise GraphError(f"forward: {release.name} names {base.name}, not what {ticket.name} moves")
    members = {base} | find_views([base])
    for reader in _find_users(members):
        if release < reader and reader.op != "output" and not is_view(reader):
            raise GraphError(f"forward: {reader.name} reads {base.name} after {release.name}")
        if ticket < reader < release and members & set(find_mutated(reader)):
            raise GraphError(
                f"forward: {reader.name} writes to {base.name} between {ticket.name} and "
                f"{release.name}"
            )


def _verify_backward(graph: TrainingGraph, tickets: dict[str, fx.Node]) -> None:
    backward = graph.backward.graph
    placeholders = {node.name: node for node in backward.find_nodes(op="placeholder")}
    for name, ticket in tickets.items():
        if name not in placeholders:
            raise GraphError(f"backward: no placeholder for ticket {name}")
        users = list(placeholders[name].users)
        prefetches = [node for node in users if node.target is PREFETCH]
        waits = [node for node in users if node.target is WAIT]
        if len(prefetches) != 1 or len(waits) != 1 or len(users) != 2:
            raise GraphError(
                f"backward: ticket {name} has {len(prefetches)} prefetches and {len(waits)} waits "
                f"among {len(users)} users; it must have one of each and no other"
            )
        base = ticket.args[0]
        assert isinstance(base, fx.Node)
        if waits[0] < prefetches[0]:
            raise GraphError(f"backward: {waits[0].name} stands before {prefetches[0].name}")
        _verify_restored(base, waits[0])
        if (waits[0].args[5:] == ()) is not ticket.args[4]:
            raise GraphError(f"backward: {waits[0].name} and {ticket.name} differ in owned")
    known = {placeholders[name] for name in tickets}
    for target in (PREFETCH, WAIT):
        for node in backward.find_nodes(op="call_function", target=target):
            if node.args[0] not in known:
                raise GraphError(f"backward: {node.name} names a value that was not offloaded")


def _verify_restored(base: fx.Node, wait: fx.Node) -> None:
    source, target = require_tensor(base), require_tensor(wait)
    facts = (_describe(source), _describe(target))
    if facts[0] != facts[1]:
        raise GraphError(
            f"backward: {wait.name} restores {facts[1]}, but {base.name} is {facts[0]}"
        )
    size, stride = wait.args[1], wait.args[2]
    assert isinstance(size, list | tuple)
    assert isinstance(stride, list | tuple)
    asked = ([_value(item) for item in size], [_value(item) for item in stride])
    if asked != (facts[0][0], facts[0][1]) or wait.args[3:5] != (source.dtype, source.device):
        raise GraphError(f"backward: {wait.name} asks for {asked}, but {base.name} is {facts[0]}")


def _describe(tensor: torch.Tensor) -> tuple[list[int], list[int], torch.dtype, torch.device]:
    size = [hint_int(item) for item in tensor.size()]
    stride = [hint_int(item) for item in tensor.stride()]
    return size, stride, tensor.dtype, tensor.device


def _value(item: object) -> int:
    if isinstance(item, fx.Node):
        item = item.meta["val"]
    assert isinstance(item, int | torch.SymInt)
    return hint_int(item)


def _find_users(members: Iterable[fx.Node]) -> set[fx.Node]:
    return {user for node in members for user in node.users}
