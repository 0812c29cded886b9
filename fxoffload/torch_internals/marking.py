"""Marks in AOTAutograd's joint graph: turn the program's annotations into marks on nodes.

    h   = aten.tanh(x)                               h  = aten.tanh(x)   MUST_SAVE, marked MOVE
    h_1 = aten.alias(h)  {"fxoffload.move"}    ->
    y   = aten.sin(h_1)                              y  = aten.sin(h)
    mm  = aten.mm(y, w)  MUST_CPU_OFFLOAD            mm = aten.mm(y, w)  MUST_SAVE, marked POLICY

Reads `meta["custom"]` (annotations, see fxoffload/marks.py) and `meta["recompute"]` (policies of
selective checkpointing).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch._functorch.compile_utils import fx_graph_cse
from torch._inductor import custom_graph_pass
from torch.fx.traceback import get_current_meta
from torch.utils.checkpoint import CheckpointPolicy

from fxoffload.graph import find_alias_sources
from fxoffload.marks import ANNOTATION, KEEP, KEEPING, MOVE, POLICY

_MARKS = "fxoffload_marks"
_RECOMPUTE = "recompute"
# The policies that offload, by name, and the marks that each makes.
_OFFLOADS = {"MUST_CPU_OFFLOAD": (POLICY,), "PREFER_CPU_OFFLOAD": ()}
_CONTEXT = "_checkpoint_context_fn"  # The key in the meta of the body of a checkpoint.


def apply_marks(graph: fx.Graph) -> None:
    """Put the marks of the joint graph on the nodes that make the marked values.

    The partitioner then saves these values. The nodes that `keep` and `move` have made are removed,
    unless they are results. A policy of MUST_CPU_OFFLOAD marks the storage that its op makes; on a
    view of an input it marks nothing, as the program did not compute the input. PREFER_CPU_OFFLOAD
    makes the value saved, without a mark. MUST_SAVE is the only tag with which torch's partitioner
    never recomputes a node. A second call changes nothing. Source:
    torch._functorch.partitioners.solve_min_cut, torch.utils.checkpoint.CheckpointPolicy.
    """
    named = [node for node in graph.nodes if _is_marker(node) or _find_policy(node) in _OFFLOADS]
    survivors = _find_survivors(graph) if named else {}
    for node in named:
        if _is_marker(node):
            (source,) = node.all_input_nodes
            for marked in {source, survivors[source]}:
                _mark(marked, node.meta["custom"][ANNOTATION])
            node.replace_all_uses_with(source, delete_user_cb=_is_no_output)
            if not node.users:
                graph.erase_node(node)
        elif _find_base(node).op == "call_function":
            marks = _OFFLOADS[_find_policy(node)]
            for marked in {node, survivors[node]}:
                _mark(marked, *marks)


def find_marks(node: fx.Node) -> frozenset[str]:
    """The marks of `node`, by the names in fxoffload/marks.py.

    The backward nodes of an op inherit its KEEPING mark. Source:
    torch._functorch._aot_autograd.utils.copy_fwd_metadata_to_bw_nodes.
    """
    marks: frozenset[str] = node.meta.get(_MARKS, frozenset())
    return marks | {KEEPING} if _find_annotation(node) == KEEPING else marks


def is_always_saved(node: fx.Node) -> bool:
    """Whether torch's partitioner must not recompute `node` if the backward needs it."""
    return _find_policy(node) == "MUST_SAVE"


def describe_marks(gm: fx.GraphModule) -> str:
    """The marks of a Dynamo graph as text for cache keys; the code of the graph does not show them.

    The text includes the hashes that torch's caches use for policies of selective checkpointing. A
    policy without a hash is in no cache, and is distinguished within this process only. Source:
    torch._functorch._aot_autograd.autograd_cache._collect_context_fn_hashes.
    """
    lines: list[str] = []
    for name, module in gm.named_modules():
        if isinstance(module, fx.GraphModule):
            found = [(node.name, _find_annotation(node)) for node in module.graph.nodes]
            context: Any = module.meta.get(_CONTEXT)
            policy: object = None if context is None else id(context)
            policy = getattr(context, "cache_hash", policy)
            lines.append(f"{name}: {[pair for pair in found if pair[1]]} {policy}")
    return "\n".join(lines)


@contextmanager
def outside_of_regions() -> Generator[None, None, None]:
    """A context that hides the annotated region around this code from AOTAutograd.

    AOTAutograd would annotate the nodes of the backward with the region. Dynamo has no guard on it,
    so code that was compiled inside the region also runs outside of it. Source:
    torch.fx.traceback.annotate.
    """
    custom: dict[str, Any] = get_current_meta().get("custom", {})
    region = custom.pop(ANNOTATION, None)
    try:
        yield
    finally:
        if region is not None:
            custom[ANNOTATION] = region


class MarkPass(custom_graph_pass.CustomGraphPass):
    """apply_marks as a pass of Inductor, before its own passes remove the marking nodes.

    then: the passes that the user has set in the same option; they run after this one. Source:
    torch._inductor.config.joint_custom_pre_pass, torch._inductor.fx_passes.joint_graph.
    """

    def __init__(self, then: object = None) -> None:
        listed: Iterable[Any] = then if isinstance(then, list | tuple) else [then]
        self.then: tuple[Callable[[fx.Graph], Any], ...] = tuple(p for p in listed if p is not None)

    def __call__(self, graph: fx.Graph) -> None:
        """Apply the marks, then the other passes."""
        apply_marks(graph)
        for each in self.then:
            each(graph)

    def uuid(self) -> Any:
        """The identity of the passes; None, which turns Inductor's cache off, if one has none."""
        found: list[Any] = [getattr(each, "uuid", lambda: None)() for each in self.then]
        return None if None in found else f"fxoffload.MarkPass {found}"

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """Pickle as `uuid`, for AOTAutograd's cache key, like OffloadPartitioner."""
        return str, (str(self.uuid()),)


def _find_annotation(node: fx.Node) -> object:
    custom: object = node.meta.get("custom")
    return custom.get(ANNOTATION) if isinstance(custom, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _find_survivors(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """By node: the first node that computes the same, by which torch's partitioner replaces it.

    Source: torch._functorch.compile_utils.fx_graph_cse.
    """
    left = {node.name for node in fx_graph_cse(graph).nodes}
    survivors: dict[fx.Node, fx.Node] = {}
    seen: dict[tuple[object, str], fx.Node] = {}
    for node in graph.nodes:
        arguments = fx.map_arg((node.args, node.kwargs), lambda each: survivors[each])
        first = seen.setdefault((node.target, str(arguments)), node)
        survivors[node] = node if node.name in left else first
    return survivors


def _is_marker(node: fx.Node) -> bool:
    return node.target is torch.ops.aten.alias.default and _find_annotation(node) in (KEEP, MOVE)


def _is_no_output(node: fx.Node) -> bool:
    return node.op != "output"


def _find_policy(node: fx.Node) -> str:
    """The name of the node's policy; not every supported torch has the offloading policies."""
    return getattr(node.meta.get(_RECOMPUTE), "name", "")


def _find_base(node: fx.Node) -> fx.Node:
    """The node that makes the storage of `node`."""
    while sources := find_alias_sources(node):
        node = sources[0]
    return node


def _mark(node: fx.Node, *marks: str) -> None:
    node.meta[_MARKS] = node.meta.get(_MARKS, frozenset()) | set(marks)
    if node.op == "call_function":
        node.meta[_RECOMPUTE] = CheckpointPolicy.MUST_SAVE
