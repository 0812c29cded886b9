"""AOTAutograd's joint graph: its partitions, and what the forward saves for the backward."""

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

from fxoffload.ops import OPS
from fxoffload.planner.plan import Cut
from fxoffload.torch_internals.nodes import is_saved_rng_state
from fxoffload.torch_internals.scheduling import mark_regions

_UNCHECKED = "saved_tensor_with_no_vc_check"
_RNG_STATE = "rng_state_output"  # What its placeholders in the backward are called.
_SCRIPT_OBJECTS = "unsafe_treat_script_objects_as_zero_size"  # Not in torch 2.11.
Graphs = tuple[fx.GraphModule, fx.GraphModule]
PartitionFunction = Callable[[Cut], Graphs]
ChooseFunction = Callable[[PartitionFunction, int, tuple[int, ...]], Graphs]


class OffloadPartitioner(custom_graph_pass.CustomPartitionerFn):
    """Lets `choose` make the forward and the backward from torch's min-cut partitions.

    choose(partition, num_outputs, static_input_indices), where partition(cut) cuts the joint graph
    as Cut says: where it is None, torch.utils.checkpoint and
    torch._functorch.config.activation_memory_budget decide. `identity` names everything
    that the result depends on beside the graph: it is this partitioner's part of the keys of
    Inductor's and AOTAutograd's caches. Source: torch._inductor.config.custom_partitioner_fn.
    """

    def __init__(self, choose: ChooseFunction, identity: str) -> None:
        self.choose = choose
        self.identity = identity

    def __call__(self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any) -> Graphs:
        """Partition `gm` (see functorch.compile.min_cut_rematerialization_partition)."""

        def partition(cut: Cut) -> Graphs:
            # The partitioner changes what it is given, and another cut may be asked for.
            joint = copy_module(gm, _get_graph_module_cls())
            patches: dict[str, Any] = {}
            if cut is not None:
                lift_checkpoints(joint.graph)
                patches["activation_memory_budget"] = 1.0 if cut == "loops" else cut
                # Process groups and meshes are inputs of a graph; they hold no memory to save.
                if hasattr(functorch_config, _SCRIPT_OBJECTS):
                    patches[_SCRIPT_OBJECTS] = True
                if cut == "loops":
                    patches["ban_recompute_materialized_backward"] = False
            with functorch_config.patch(patches):
                forward, backward = min_cut_partition(joint, joint_inputs, **kwargs)
            name_rng_states(forward.graph, backward.graph)
            return forward, backward

        static = tuple(kwargs.get("static_lifetime_input_indices") or ())
        graphs = self.choose(partition, kwargs["num_fwd_outputs"], static)
        for chosen in graphs:
            mark_regions(chosen.graph, OPS)
        return graphs

    def uuid(self) -> str:
        """The identity; Inductor hashes it into its cache keys."""
        return self.identity

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """AOTAutograd pickles its whole configuration for its cache key: pickle as identity."""
        return str, (self.identity,)


def is_checkpointed(graph: fx.Graph) -> bool:
    """Whether the program would rather have a node of `graph` recomputed, but leaves it to us.

    That is what torch.utils.checkpoint says of all that runs under it, unless a policy of selective
    checkpointing says what must be. Source: torch.utils.checkpoint.CheckpointPolicy.
    """
    return any(_is_checkpointed(node) for node in graph.nodes)


def lift_checkpoints(graph: fx.Graph) -> None:
    """Let the partitioner save what is_checkpointed looks for, as everything else."""
    for node in filter(_is_checkpointed, graph.nodes):
        del node.meta["recompute"]


def _is_checkpointed(node: fx.Node) -> bool:
    return node.meta.get("recompute") is CheckpointPolicy.PREFER_RECOMPUTE


def find_backward_placeholder(placeholders: Mapping[str, fx.Node], saved: fx.Node) -> fx.Node:
    """The backward placeholder of a saved forward node.

    torch's partitioners give both the same name. Source: torch._functorch.partitioners.
    """
    return placeholders[saved.name]


def name_rng_states(forward: fx.Graph, backward: fx.Graph) -> None:
    """Give the states that checkpoints save for random ops one name in both graphs.

    Other saved values have that from the start. Source:
    torch._functorch.partitioners.functionalize_rng_ops, which saves and takes them in one order.
    """
    (results,) = next(iter(forward.find_nodes(op="output"))).args
    assert isinstance(results, list | tuple)
    saved = [node for node in results if isinstance(node, fx.Node) and is_saved_rng_state(node)]
    taken = [
        node for node in backward.find_nodes(op="placeholder") if node.name.startswith(_RNG_STATE)
    ]
    for node, placeholder in zip(saved, taken, strict=True):
        node._rename(placeholder.name)


def is_unchecked(node: fx.Node) -> bool:
    """Whether autograd saves `node` without a look at its version: the program stashed it itself.

    What changes such a tensor in place before its backward changes what that reads. Source:
    torch._functorch.autograd_function (ctx.x = x of an autograd.Function).
    """
    return bool(node.meta.get(_UNCHECKED, False))


def copy_saved_meta(source: fx.Node, target: fx.Node) -> None:
    """Let `target` take the place of the saved node `source` among the forward's results.

    AOTAutograd counts the saved values that are kept without a version check by this mark, and
    expects them last. Source: torch._functorch.partitioners._extract_fwd_bwd_modules.
    """
    if is_unchecked(source):
        target.meta[_UNCHECKED] = True


def set_results(graph: fx.Graph, results: Sequence[Any], kept: Sequence[int]) -> None:
    """Make `graph` return `results`, the entries of the old result list at positions `kept`.

    The output node carries one descriptor for each result. Source: torch._functorch.partitioners.
    """
    output = next(iter(graph.find_nodes(op="output")))
    output.args = (tuple(results),)
    descriptors = output.meta.get("desc")
    if descriptors is not None:
        output.meta["desc"] = [descriptors[index] for index in kept]


class SymbolicInts:
    """Turns symbolic sizes into nodes of one graph, from the placeholders that bind symbols.

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
        """`value` as an int or a node; nodes are made right behind the placeholders, once."""
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
    """The same graph, node for node, over the same constants, in a module of `kind`."""
    graph = fx.Graph()
    copied: Any = graph.graph_copy(module.graph, val_map={}, return_output_node=True)
    results, output = copied
    graph.output(results).meta = dict(output.meta)
    return kind(module, graph)


def _get_value(node: fx.Node) -> Any:
    return node.meta["val"]
