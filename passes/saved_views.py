"""Saved views: recreate the saved views of a storage from the restored storage in the backward."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx

from fxoffload.graph import find_views, require_tensor
from fxoffload.torch_internals import SymbolicInts


def replay_view(
    graph: fx.Graph, y: fx.Node, base: fx.Node, member: fx.Node, symbols: SymbolicInts
) -> fx.Node:
    """Insert a view of `y` that has the layout and dtype that `member` has as a view of `base`."""
    source, target = require_tensor(base), require_tensor(member)
    if target.dtype != source.dtype:
        # `view.dtype` needs a last stride of 1 and a divisible size: flatten `y` first.
        flat_size = [symbols.emit(source.numel())]
        y = _call(graph, torch.ops.aten.as_strided.default, (y, flat_size, [1], 0), y)
        y = _call(graph, torch.ops.aten.view.dtype, (y, target.dtype), y)
        start = source.storage_offset() * source.itemsize // target.itemsize
    else:
        start = source.storage_offset()
    arguments = (
        y,
        [symbols.emit(item) for item in target.size()],
        [symbols.emit(item) for item in target.stride()],
        symbols.emit(cast(Any, target.storage_offset()) - start),
    )
    return _call(graph, torch.ops.aten.as_strided.default, arguments, y)


def _call(
    graph: fx.Graph, target: torch._ops.OpOverload, args: tuple[object, ...], y: fx.Node
) -> fx.Node:
    node = graph.call_function(target, cast(Any, args))
    with require_tensor(y).fake_mode:  # pyright: ignore[reportAttributeAccessIssue]
        node.meta = {"val": target(*fx.map_arg(cast(Any, args), lambda n: n.meta["val"]))}
    return node


def sink_views(graph: fx.Graph, placeholders: list[fx.Node]) -> list[fx.Node]:
    """Move views of the placeholders down to the first reader; return the readers and the views.

    The wait must stand before all views. A view costs nothing and needs no data, but autograd
    often puts it long before the first node that reads through it, where the wait would be early.
    """
    views = find_views(placeholders)
    readers = [user for node in (*placeholders, *views) for user in node.users if user not in views]
    first = min(readers)
    for view in sorted(views):
        if view < first:
            first.prepend(view)
    return [*readers, *views]
