"""Partition AOTAutograd's joint graph, and handle what the forward saves for the backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
import torch
from functorch.compile import min_cut_rematerialization_partition as min_cut_partition
from torch import fx
from torch._functorch import config as functorch_config
from torch._inductor import custom_graph_pass
from torch.fx._lazy_graph_module import _get_graph_module_cls
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis
from torch.utils.checkpoint import CheckpointPolicy

from fxoffload.graph import get_output, get_results
from fxoffload.ops import OPS
from fxoffload.planner.plan import Cut
from fxoffload.torch_internals.marking import apply_marks, is_always_saved
from fxoffload.torch_internals.nodes import is_saved_rng_state
from fxoffload.torch_internals.scheduling import mark_regions
from fxoffload.torch_internals.trace_log import emit_graph

_UNCHECKED = "saved_tensor_with_no_vc_check"
_RNG_STATE = "rng_state_output"  # The prefix of the names of its placeholders in the backward.
_SCRIPT_OBJECTS = "unsafe_treat_script_objects_as_zero_size"  # Not in torch 2.11.
_OFFLOADING = "enable_activation_offloading"  # A pass of torch's own.
_SHARE = "activation_memory_budget"
# For a share of 0.0, torch's partitioner recomputes even what is tagged MUST_SAVE.
_LEAST_SHARE = 1e-9
Graphs = tuple[fx.GraphModule, fx.GraphModule]
PartitionFunction = Callable[[Cut], Graphs]
ChooseFunction = Callable[[PartitionFunction, int, tuple[int, ...]], Graphs]


class OffloadPartitioner(custom_graph_pass.CustomPartitionerFn):
    """A partitioner whose `choose` makes the forward and the backward from torch's partitions.

    choose(partition, num_outputs, static_input_indices) returns the two graphs; partition(cut)
    returns torch's min-cut partition by a Cut. For the cut None, torch.utils.checkpoint and
    torch._functorch.config.activation_memory_budget decide what is saved. identity: names
    everything that the result depends on beside the graph; it becomes part of the keys of
    Inductor's and AOTAutograd's caches. Source: torch._inductor.config.custom_partitioner_fn.
    """

    def __init__(self, choose: ChooseFunction, identity: str) -> None:
        self.choose = choose
        self.identity = identity

    def __call__(self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any) -> Graphs:
        """Partition `gm` (see functorch.compile.min_cut_rematerialization_partition)."""

        def partition(cut: Cut) -> Graphs:
            # torch's partitioner changes its argument, and `choose` may ask for other cuts.
            joint = copy_module(gm, _get_graph_module_cls())
            apply_marks(joint.graph)
            patches: dict[str, Any] = {}
            if hasattr(functorch_config, _OFFLOADING):
                patches[_OFFLOADING] = False  # What moves is moved by us.
            if cut is not None:
                lift_checkpoints(joint.graph)
                patches[_SHARE] = 1.0 if cut == "loops" else cut
                # Process groups and meshes are inputs of a graph; they hold no memory to save.
                if hasattr(functorch_config, _SCRIPT_OBJECTS):
                    patches[_SCRIPT_OBJECTS] = True
                if cut == "loops":
                    patches["ban_recompute_materialized_backward"] = False
            share = patches.get(_SHARE, functorch_config.activation_memory_budget)
            if share == 0.0 and any(map(is_always_saved, joint.graph.nodes)):
                patches[_SHARE] = _LEAST_SHARE
            with functorch_config.patch(patches):
                forward, backward = min_cut_partition(joint, joint_inputs, **kwargs)
            name_rng_states(forward.graph, backward.graph)
            return forward, backward

        emit_graph("joint_graph", gm)
        static = tuple(kwargs.get("static_lifetime_input_indices") or ())
        graphs = self.choose(partition, kwargs["num_fwd_outputs"], static)
        for chosen in graphs:
            mark_regions(chosen.graph, OPS)
        return graphs

    def uuid(self) -> str:
        """The identity; Inductor hashes it into its cache keys."""
        return self.identity

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """Pickle as `identity`: AOTAutograd pickles its whole configuration for its cache key."""
        return str, (self.identity,)


def is_checkpointed(graph: fx.Graph) -> bool:
    """Whether the program prefers to recompute a node of `graph`, but leaves the choice to us.

    torch.utils.checkpoint marks all nodes under it so, except those for which a policy of selective
    checkpointing prescribes saving or recomputing. Source: torch.utils.checkpoint.CheckpointPolicy.
    """
    return any(_is_checkpointed(node) for node in graph.nodes)


def lift_checkpoints(graph: fx.Graph) -> None:
    """Unmark the nodes that is_checkpointed finds, so that the partitioner may save them."""
    for node in filter(_is_checkpointed, graph.nodes):
        del node.meta["recompute"]


def _is_checkpointed(node: fx.Node) -> bool:
    return node.meta.get("recompute") is CheckpointPolicy.PREFER_RECOMPUTE


def find_backward_placeholder(placeholders: Mapping[str, fx.Node], saved: fx.Node) -> fx.Node:
    """The placeholder of the backward for a saved node of the forward.

    torch's partitioners give both the same name. Source: torch._functorch.partitioners.
    """
    return placeholders[saved.name]


def name_rng_states(forward: fx.Graph, backward: fx.Graph) -> None:
    """Give each state that a checkpoint saves for a random op the same name in both graphs.

    All other saved values have the same name already. Source:
    torch._functorch.partitioners.functionalize_rng_ops, which has the same order in both graphs.
    """
    saved = [node for node in get_results(forward) if node is not None and is_saved_rng_state(node)]
    taken = [
        node for node in backward.find_nodes(op="placeholder") if node.name.startswith(_RNG_STATE)
    ]
    for node, placeholder in zip(saved, taken, strict=True):
        node._rename(placeholder.name)


def is_unchecked(node: fx.Node) -> bool:
    """Whether autograd saves `node` without a version check, as the program stashed it itself.

    An in-place change of such a tensor is allowed, and its backward reads the changed data. Source:
    torch._functorch.autograd_function (ctx.x = x of an autograd.Function).
    """
    return bool(node.meta.get(_UNCHECKED, False))


def copy_saved_meta(source: fx.Node, target: fx.Node) -> None:
    """Copy to `target` the metadata that it needs to replace `source` among the saved values.

    This is the mark of values that are saved without a version check: AOTAutograd counts the marks,
    and expects the marked values last. Source:
    torch._functorch.partitioners._extract_fwd_bwd_modules.
    """
    if is_unchecked(source):
        target.meta[_UNCHECKED] = True


def set_results(graph: fx.Graph, results: Sequence[Any], kept: Sequence[int]) -> None:
    """Make `graph` return `results`, each in place of the old result at the position in `kept`.

    The output node has one descriptor for each result. Source: torch._functorch.partitioners.
    """
    output = get_output(graph)
    output.args = (tuple(results),)
    descriptors = output.meta.get("desc")
    if descriptors is not None:
        output.meta["desc"] = [descriptors[index] for index in kept]


class SymbolicInts:
    """Turns symbolic sizes into nodes of one graph, computed from placeholders that bind symbols.

    Source: torch.utils._sympy.interp, as in torch.fx.passes.runtime_assert.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._bound: dict[sympy.Symbol, fx.Proxy] = {}
        self._values: dict[sympy.Expr, int | fx.Node] = {}
        for node in graph.find_nodes(op="placeholder"):
            value = node.meta.get("val")
            if isinstance(value, torch.SymInt) and isinstance(value.node.expr, sympy.Symbol):
                self._bound.setdefault(value.node.expr, fx.Proxy(node))

    def emit(self, value: int | torch.SymInt) -> int | fx.Node:
        """`value` as an int or a node; a new node is put right after the placeholders, once."""
        if isinstance(value, int):
            return value
        expression = value.node.expr
        if expression not in self._values:
            top = next(node for node in self._graph.nodes if node.op != "placeholder")
            before = set(self._graph.nodes)
            with self._graph.inserting_before(top):
                result = sympy_interp(PythonReferenceAnalysis, self._bound, expression)
            for node in self._graph.nodes:
                if node not in before:
                    assert callable(node.target)
                    node.meta["val"] = node.target(*fx.map_arg(node.args, _get_value))
            self._values[expression] = result.node if isinstance(result, fx.Proxy) else int(result)
        return self._values[expression]


def copy_module(
    module: fx.GraphModule, kind: type[fx.GraphModule] = fx.GraphModule
) -> fx.GraphModule:
    """A copy of `module` as a `kind`: the same nodes, sharing the same constants."""
    graph = fx.Graph()
    copied: Any = graph.graph_copy(module.graph, val_map={}, return_output_node=True)
    results, output = copied
    graph.output(results).meta = dict(output.meta)
    return kind(module, graph)


def _get_value(node: fx.Node) -> Any:
    return node.meta["val"]
