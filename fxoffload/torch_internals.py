"""Every private torch API that this package touches, and nothing else.

Checked on torch 2.13.0 and 2.11.0; `tests/test_torch_internals.py` has a contract test for each
function, so that a torch release breaks this file alone and a test says where.
"""

from __future__ import annotations

import copy
import inspect
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from operator import attrgetter, getitem
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any, get_origin

import networkx as nx
import sympy
import torch
from functorch.compile import make_boxed_func
from functorch.compile import min_cut_rematerialization_partition as min_cut_partition
from torch import fx
from torch._dynamo import config as dynamo_config
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import boxed_nop
from torch._dynamo.exc import ShortenTraceback
from torch._functorch import config as functorch_config
from torch._guards import TracingContext, tracing
from torch._inductor import config as inductor_config
from torch._inductor import custom_graph_pass, inductor_prims
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch._inductor.virtualized import V
from torch._ops import HigherOrderOperator, OpOverload
from torch._prims.rng_prims import run_and_save_rng_state
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.fx._lazy_graph_module import _get_graph_module_cls, _use_lazy_graph_module
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_map_only
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis
from torch.utils.checkpoint import CheckpointPolicy
from torch.utils.flop_counter import flop_registry

from fxoffload.errors import OffloadError
from fxoffload.graph import is_static, is_view
from fxoffload.ops import OFFLOAD, OPS, WAIT
from fxoffload.plan import Cut

_ADAPTED = "fxoffload_adapted"  # Marks a lowering of ours.
_RNG_STATE = "rng_state_output"  # What its placeholders in the backward are called.
# What schemas call the results of random ops that tell their backward which numbers were drawn.
_RNG_RESULTS = ("rng_state", "philox_seed", "philox_offset", "unused")
_SCRIPT_OBJECTS = "unsafe_treat_script_objects_as_zero_size"  # Not in torch 2.11.
_COLLECTIVES = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "_dtensor", "symm_mem")
_OFF_WHERE_MOVED = ("allow_buffer_reuse", "reorder_for_peak_memory")
_OFF_WHERE_TRAINED = ("layout_optimization",)
_PASSES = ("custom_partitioner_fn", "_pre_fusion_custom_pass", "_post_fusion_custom_pass")
# The options of Inductor that compile_with_inductor sets.
SET_OPTIONS = frozenset((*_PASSES, *_OFF_WHERE_MOVED, *_OFF_WHERE_TRAINED))
_REGION = "mutation_region_id"  # Under which Inductor's patterns look for it in meta.

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
            joint = _copy_module(gm, _get_graph_module_cls())
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


def compile_with_inductor(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    partitioner: OffloadPartitioner,
    options: Mapping[str, Any] = MappingProxyType({}),
    *,
    inner_compile: Callable[..., Any] = compile_fx_inner,
) -> Callable[..., Any]:
    """Compile a Dynamo graph with Inductor, its partitioner replaced by ours.

    options: of Inductor, none of SET_OPTIONS.

    Three of Inductor's options are off in graphs from which something moves. allow_buffer_reuse
    keeps dead buffers for later results of the same size as long as that seems to cost nothing, but
    Inductor does not see the memory that transfers take: the peak would exceed the planned one.
    reorder_for_peak_memory knows nothing of transfers, and would delay every prefetch to its wait.
    layout_optimization gives the inputs of convolutions other strides than the graph says; an
    offload would force them back by a copy. It is off in all graphs that are trained, as parity
    with unmoved ones would be lost. Source: torch._inductor.compile_fx.compile_fx.
    """
    patches: dict[str, Any] = {
        **options,
        "custom_partitioner_fn": partitioner,
        "_pre_fusion_custom_pass": CountedByGraph(OPS),
        "_post_fusion_custom_pass": FusedAtLast(OPS),
    }

    def compile_one(graph: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        off: list[str] = []
        with ExitStack() as stack:
            if any(node.target in OPS for node in graph.graph.nodes):
                off += _OFF_WHERE_MOVED
                stack.enter_context(fuse_between_calls())
            if not kwargs.get("is_inference"):
                off += _OFF_WHERE_TRAINED
            stack.enter_context(inductor_config.patch(dict.fromkeys(off, False)))
            return inner_compile(graph, *args, **kwargs)

    keep_strides(OFFLOAD)
    take_as_aligned(WAIT)
    compiled = compile_fx(gm, inputs, inner_compile=compile_one, config_patches=patches)
    assert callable(compiled)
    return compiled


def list_inductor_modes() -> dict[str, dict[str, Any]]:
    """The modes of torch.compile, and what each changes of Inductor's configuration.

    Source: torch._inductor.list_mode_options.
    """
    return torch._inductor.list_mode_options()


def list_inductor_options() -> dict[str, type]:
    """The options of Inductor by name, with the type of each; `object` where any will do.

    torch.compile checks no type that has parameters, such as a union, either. Source:
    torch._inductor.list_options, torch._TorchCompileInductorWrapper.apply_options.
    """
    config: Any = inductor_config
    types = {name: config.get_type(name) for name in torch._inductor.list_options()}

    def is_plain(kind: Any) -> bool:
        plain = isinstance(kind, type) and get_origin(kind) is None
        return plain and kind not in (Any, NoneType)

    return {name: kind if is_plain(kind) else object for name, kind in types.items()}


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
    from torch._inductor.ir import MultiOutput  # Dear to import, and Inductor does.

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
    from torch._inductor.pattern_matcher import is_mutation_op  # Dear to import.

    divides = any(node.target in ops for node in graph.nodes)
    region = 0
    for node in graph.nodes:
        node.meta.pop(_REGION, None)
        if divides:
            region += is_mutation_op(node) or runs_alone(node)
            node.meta[_REGION] = region


def keep_strides(op: OpOverload) -> None:
    """Let Inductor store what `op` reads first with the strides of the graph, where it may choose.

    It heeds the tag needs_exact_strides in calls alone that Dynamo met, and else chooses what suits
    its loops: a library call that reads the value too would have it copied, and so would `wait`.
    Source: torch._inductor.graph.GraphLowering.call_function (eager_input_vals).
    """

    def adapt(fall_back: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(fall_back)
        def lower(x: Any, *args: Any, **kwargs: Any) -> Any:
            x.realize()
            if is_storage_and_layout(x) and isinstance(x.get_layout(), FlexibleLayout):
                source: Any = V.graph.current_node.args[0]
                ExternKernel.require_exact_strides(x, source.meta["val"].stride())
            return fall_back(x, *args, **kwargs)

        return lower

    from torch._inductor.ir import (  # Dear to import, and Inductor does when it compiles.
        ExternKernel,
        FlexibleLayout,
        is_storage_and_layout,
    )

    _adapt_lowering(op, adapt)


def take_as_aligned(op: OpOverload) -> None:
    """Let Inductor take CUDA results of `op` as aligned to 16 bytes, so that Triton loads wide.

    Inductor calls every result of an op that it does not know unaligned when an argument is, and a
    ticket is: inputs on the CPU count so. The results must be what the CUDA allocator returned
    (512-byte alignment), from their first byte on; the code that Inductor writes asserts it.
    Source: torch._inductor.ir.FallbackKernel.create, V.graph.unaligned_buffers (2.11 the same).
    """

    def adapt(fall_back: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(fall_back)
        def lower(*args: Any, **kwargs: Any) -> Any:
            result = fall_back(*args, **kwargs)
            if result.get_device().type == "cuda":
                V.graph.unaligned_buffers.discard(result.get_name())
            return result

        return lower

    _adapt_lowering(op, adapt)


def _adapt_lowering(
    op: OpOverload, adapt: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    """Let Inductor lower `op`, a call of it, by what `adapt` makes of its own function; once."""
    from torch._inductor import lowering  # Dear to import, and Inductor does when it compiles.

    if op not in lowering.lowerings:
        # What Inductor itself does at the first sight of an op with this tag.
        constraint = lowering.tag_to_layout_constraint(torch.Tag.needs_exact_strides)
        lowering.make_fallback(op, layout_constraint=constraint)
    fall_back = lowering.lowerings[op]
    if not hasattr(fall_back, _ADAPTED):
        adapted = adapt(fall_back)
        setattr(adapted, _ADAPTED, True)
        lowering.lowerings[op] = adapted


def compile_with_aot(
    gm: fx.GraphModule, inputs: Sequence[Any], partitioner: OffloadPartitioner
) -> Callable[..., Any]:
    """Run the transformed graphs as they are, without Inductor: torch's `aot_eager`, partitioned.

    As code of Inductor does, they let go of each input once its last reader has run. The helper of
    torch takes what AOTAutograd alone does not: inputs in lists (compiled autograd), and a backward
    that Dynamo must not trace. Source: torch._dynamo.backends.debugging.aot_eager.
    """

    def run(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        return boxed_nop(gm, list(example_inputs))

    compile_graph = aot_autograd(
        fw_compiler=run,
        bw_compiler=run,
        inference_compiler=run,
        partition_fn=partitioner,
        keep_inference_input_mutations=True,
    )
    return compile_graph(gm, inputs)


@dataclass(frozen=True)
class DynamoGraph:
    """A Dynamo graph, to be compiled once more later."""

    gm: fx.GraphModule
    fake_mode: FakeTensorMode

    @contextmanager
    def compiling(self, inputs: Sequence[Any]) -> Generator[fx.GraphModule, None, None]:
        """Within, what backends find when Dynamo calls them: a graph of one's own.

        inputs: the tensors that it is compiled with; their sizes are taken as they are.
        """
        with tracing(TracingContext(self.fake_mode)):
            # The compiler finds the fake tensor of each, as long as somebody holds it. By itself it
            # would give a tensor that Dynamo has not seen symbolic sizes, which no guard is for.
            fakes = [self.fake_mode.from_tensor(x, static_shapes=True) for x in inputs]
            yield _copy_dynamo_graph(self.gm)
            del fakes


def keep_dynamo_graph(gm: fx.GraphModule) -> DynamoGraph | None:
    """What compiling `gm` takes, or None where it cannot be compiled outside of Dynamo.

    Not with symbolic sizes, which come as inputs: new guards on them would have to reach Dynamo.
    Source: torch._dynamo.output_graph.OutputGraph.call_user_compiler.
    """
    inputs = [node.meta.get("example_value") for node in gm.graph.find_nodes(op="placeholder")]
    if not inputs or not all(isinstance(x, FakeTensor) and is_static(x) for x in inputs):
        return None
    return DynamoGraph(_copy_dynamo_graph(gm), inputs[0].fake_mode)


def _copy_dynamo_graph(gm: fx.GraphModule) -> fx.GraphModule:
    # The key of AOTAutograd's cache has all that is there, and Dynamo's lazy class: the copy must
    # meet what is compiled of the original in another process.
    with _use_lazy_graph_module(True):
        copied = _copy_module(gm, type(gm).__bases__[0])
    copied.meta = dict(gm.meta)
    for name, value in vars(gm).items():
        vars(copied).setdefault(name, value)
    pairs = zip(
        gm.graph.find_nodes(op="placeholder"),
        copied.graph.find_nodes(op="placeholder"),
        strict=True,
    )
    for node, other in pairs:
        other._dynamo_source = node._dynamo_source  # By this it is known as static.
    return copied


def trace_with_inductor(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    partitioner: OffloadPartitioner,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Do what compile_with_inductor does up to the partitioned graphs, and generate no code."""

    def skip(graph: fx.GraphModule, *_: Any, **__: Any) -> Callable[..., Any]:
        return make_boxed_func(graph.forward)

    # A cached graph would come back without a call of the partitioner.
    with functorch_config.patch(enable_autograd_cache=False):
        compile_with_inductor(gm, inputs, partitioner, options, inner_compile=skip)


def unlimited_recompiles() -> AbstractContextManager[None]:
    """Within, Dynamo traces a function anew however often it was traced for other arguments.

    At its limit it would run the function in eager mode, and no graph would be seen. Source:
    torch._dynamo.config.recompile_limit, accumulated_recompile_limit.
    """
    limit = 2**31
    return dynamo_config.patch(recompile_limit=limit, accumulated_recompile_limit=limit)


@contextmanager
def without_memory() -> Generator[Callable[[Any], Any], None, None]:
    """Within, tensors have sizes, strides and a device, but no memory, and nothing is computed.

    Yields what makes such a copy of a module, or of tensors in lists, tuples and dicts. Tensors on
    the meta device come out as those of a CPU, which they stand for. Source:
    torch._subclasses.fake_tensor.FakeTensorMode; Dynamo traces what it makes.
    """

    def copy_tensor(tensor: torch.Tensor) -> torch.Tensor:
        device = torch.device("cpu") if tensor.device.type == "meta" else tensor.device
        copied = torch.empty_strided(
            tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device
        )
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(copied, requires_grad=tensor.requires_grad)
        return copied.requires_grad_(tensor.requires_grad)

    def copy_value(value: Any) -> Any:
        if isinstance(value, torch.nn.Module):
            tensors = (*value.parameters(), *value.buffers())
            # deepcopy takes these for copies that it has made already.
            return copy.deepcopy(value, {id(tensor): copy_tensor(tensor) for tensor in tensors})
        return tree_map_only(torch.Tensor, copy_tensor, value)

    # What a function or a module holds beside parameters and buffers is real.
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield copy_value


def as_user_error(error: OffloadError) -> Exception:
    """`error` in a form that torch.compile hands to the user as it is.

    Dynamo wraps what a backend raises, and prints its own inside, unless it is a ShortenTraceback.
    The result is an instance of both. To each message Dynamo adds how to debug itself, which is no
    help with an option: the result shows its own alone. Source:
    torch._dynamo.output_graph.call_user_compiler, torch._dynamo.exc.augment_exc_message.
    """
    kind = type(error)
    frame = inspect.currentframe()
    caller = frame.f_back if frame is not None else None

    def initialise(self: Any, *args: Any) -> None:
        ShortenTraceback.__init__(self, *args, first_useful_frame=caller)

    message = str(error)

    def show(_: object) -> str:
        return message

    methods = {"__init__": initialise, "__str__": show}
    shown: Any = type(kind.__name__, (ShortenTraceback, kind), methods)
    shown.__module__ = kind.__module__
    result = shown(*error.args)
    vars(result).update(vars(error))
    return result


def keeps_graph() -> bool:
    """Whether the backward that runs now was called with retain_graph or create_graph.

    Source: torch._C._autograd._get_current_graph_task_keep_graph (outside a backward: True).
    """
    autograd: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]
    return bool(autograd._get_current_graph_task_keep_graph())


def is_shared(x: torch.Tensor) -> bool:
    """Whether another tensor than `x` holds the memory of `x`.

    Source: torch._C._storage_Use_Count, which counts the storage that is looked at here, too.
    """
    internal: Any = torch._C
    storage = x.untyped_storage()
    return internal._storage_Use_Count(storage._cdata) > 2


def keeps_tangents() -> bool:
    """Whether the gradients that a backward is called with live until it has returned.

    Where not, each dies behind its last reader. Source:
    torch._functorch._aot_autograd.runtime_wrappers (seen in 2.11, and no longer in 2.13).
    """
    return torch.__version__ < "2.12"


def outside_of_tracing() -> AbstractContextManager[Any]:
    """Within, tensors are real and ops run, also while AOTAutograd traces.

    Source: torch._subclasses.fake_tensor.
    """
    return unset_fake_temporarily()


def describe_tracing() -> str:
    """What AOTAutograd's graphs depend on beside the program: modes of autograd, and its options.

    torch's own key of a compiled graph has the same (AOTAutogradCacheDetails).
    """
    modes = {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    return f"{modes} functorch {functorch_config.get_hash().hex()}"


def find_cache_folder() -> Path:
    """Where Inductor keeps what it compiled; also what is here goes when that is deleted.

    Source: torch._inductor.runtime.cache_dir_utils.
    """
    return Path(cache_dir())


def is_rng_state(node: fx.Node) -> bool:
    """Whether `node` holds the state or the seeds of a random number generator.

    Inductor reads seeds by the name of their buffer and not through its dependencies, so that a
    read could pass the wait. Those of attention lie on the CPU where their fake tensors say CUDA.
    Source: torch._prims.rng_prims, torch._inductor.inductor_prims, schemas of aten's attention.
    """
    if node.target in (inductor_prims.seed, inductor_prims.seeds):
        return True
    if _is_saved_rng_state(node) or _tells_what_was_drawn(node):
        return True
    return node.op == "placeholder" and "rng_state" in node.name


def _is_saved_rng_state(node: fx.Node) -> bool:
    if node.target is not getitem:
        return False
    source, index = node.args
    assert isinstance(source, fx.Node)
    # The state, then what the random op returned.
    return source.target is run_and_save_rng_state and bool(index == 0)


def _tells_what_was_drawn(node: fx.Node) -> bool:
    if node.target is not getitem:
        return False
    source, index = node.args
    assert isinstance(source, fx.Node)
    if not isinstance(source.target, OpOverload) or not isinstance(index, int):
        return False
    names = [result.name for result in source.target._schema.returns]
    # A list of tensors is one result.
    return index in range(len(names)) and names[index] in _RNG_RESULTS


def is_collective(node: fx.Node) -> bool:
    """Whether `node` starts or waits for a collective of torch.distributed.

    All ranks must run these in one order. Source:
    torch.distributed._functional_collectives, torch.distributed._symmetric_memory.
    """
    return isinstance(node.target, OpOverload) and node.target.namespace in _COLLECTIVES


def runs_alone(node: fx.Node) -> bool:
    """Whether Inductor calls a library for `node` instead of generating a loop that can be fused.

    Source: torch._inductor.lowering.fallbacks, to which it adds ops that others define when it
    first meets them; matrix products and the like, which have templates or library calls, are the
    ops that torch.utils.flop_counter knows.
    """
    from torch._inductor import lowering  # Dear to import, and Inductor does when it compiles.

    target = node.target
    return (
        getattr(target, "overloadpacket", None) in flop_registry
        or target in lowering.fallbacks
        or isinstance(target, HigherOrderOperator)
        or (
            isinstance(target, OpOverload)
            and target.namespace not in ("aten", "prims")
            and target not in lowering.lowerings
        )
    )


@dataclass(frozen=True, slots=True)
class StorePolicy:
    """When Inductor stores a result instead of computing it in the loop of each of its readers.

    reads: from memory, beyond which it does; reused_reads: the same where several nodes read the
    result. ops: in the loop, beyond which it does. dear_ops: those whose results it stores where
    several nodes read them.
    """

    reads: int
    reused_reads: int
    ops: int
    dear_ops: frozenset[str]


def find_store_policy(device: torch.device) -> StorePolicy:
    """What Inductor does on `device`.

    Source: torch._inductor.ir.StorageBox (should_realize_on_reuse, has_exceeded_max_reads) and
    torch._inductor.config; releases before 2.13 know no thresholds of a CPU's own, and fewer
    dear ops.
    """
    config: Any = inductor_config
    on_cpu = device.type == "cpu"

    def find_threshold(what: str) -> int:
        threshold = getattr(config, f"realize_{what}_threshold")
        if threshold is not None:
            return threshold
        of_cpu, of_others = f"realize_cpu_{what}_threshold", f"_realize_{what}_threshold_default"
        return getattr(config, of_cpu if on_cpu else of_others)

    dear = ("exp", "sigmoid") if on_cpu else ()
    if on_cpu and hasattr(config, "realize_cpu_opcount_threshold"):
        dear += ("log", "log10", "log1p", "log2", "tanh")
    return StorePolicy(
        reads=find_threshold("acc_reads"),
        reused_reads=config.realize_reads_threshold,
        ops=find_threshold("opcount"),
        dear_ops=frozenset(dear),
    )


def is_wrapper_subclass(tensor: torch.Tensor) -> bool:
    """Whether `tensor` only wraps others, so that it has no storage of its own.

    Source: torch.utils._python_dispatch.
    """
    return bool(is_traceable_wrapper_subclass(tensor))


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
    saved = [node for node in results if isinstance(node, fx.Node) and _is_saved_rng_state(node)]
    taken = [
        node for node in backward.find_nodes(op="placeholder") if node.name.startswith(_RNG_STATE)
    ]
    for node, placeholder in zip(saved, taken, strict=True):
        node._rename(placeholder.name)


def copy_saved_meta(source: fx.Node, target: fx.Node) -> None:
    """Let `target` take the place of the saved node `source` among the forward's results.

    AOTAutograd counts the saved values that are kept without a version check by this mark, and
    expects them last. Source: torch._functorch.partitioners._extract_fwd_bwd_modules.
    """
    if source.meta.get("saved_tensor_with_no_vc_check", False):
        target.meta["saved_tensor_with_no_vc_check"] = True


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


def _copy_module(
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
