"""The only folder that uses private torch APIs.

Checked on torch 2.13.0 and 2.11.0; `tests/torch_internals/` has a contract test for each
function, so that a torch release breaks only this folder, and a test names the function.

    marking         marks of the program in the joint graph, policies of checkpoints
    partitioning    the joint graph of AOTAutograd, and what the forward saves
    compilation     Inductor and aot_eager with our partitioner
    scheduling      the order of Inductor's nodes, and which loops it fuses
    lowering        calls or loops, which results are stored, lowerings of our ops
    dynamo          graphs that are compiled again; tracing without memory; errors
    autograd        the state of autograd, and the memory of tensors
    memory_observer a call when CUDA is out of memory
    profiling       whether a profiler runs
    nodes           random numbers, collectives, wrapper subclasses
    tensor_sizes    sizes and layouts of fake tensors
    trace_log       what TORCH_TRACE records
"""

from fxoffload.torch_internals.autograd import (
    describe_tracing,
    is_shared,
    keeps_graph,
    keeps_tangents,
    make_version_counter,
    outside_of_tracing,
)
from fxoffload.torch_internals.compilation import (
    SET_OPTIONS,
    compile_with_aot,
    compile_with_inductor,
    find_cache_folder,
    list_inductor_modes,
    list_inductor_options,
    trace_with_inductor,
)
from fxoffload.torch_internals.dynamo import (
    DynamoGraph,
    as_user_error,
    keep_dynamo_graph,
    skip_frame,
    unlimited_recompiles,
    without_memory,
)
from fxoffload.torch_internals.lowering import (
    StorePolicy,
    call_directly,
    find_store_policy,
    keep_strides,
    runs_alone,
    take_as_returned,
)
from fxoffload.torch_internals.marking import (
    MarkPass,
    apply_marks,
    describe_marks,
    find_marks,
)
from fxoffload.torch_internals.memory_observer import watch_out_of_memory
from fxoffload.torch_internals.nodes import (
    is_collective,
    is_rng_state,
    is_wrapper_subclass,
)
from fxoffload.torch_internals.partitioning import (
    Graphs,
    OffloadPartitioner,
    PartitionFunction,
    SymbolicInts,
    copy_saved_meta,
    find_backward_placeholder,
    is_checkpointed,
    is_unchecked,
    lift_checkpoints,
    name_rng_states,
    set_results,
)
from fxoffload.torch_internals.profiling import is_profiling
from fxoffload.torch_internals.scheduling import (
    CountedByGraph,
    FusedAtLast,
    fuse_between_calls,
    mark_regions,
)
from fxoffload.torch_internals.trace_log import emit_artifact, emit_graph, is_tracing

__all__ = [
    "SET_OPTIONS",
    "CountedByGraph",
    "DynamoGraph",
    "FusedAtLast",
    "Graphs",
    "MarkPass",
    "OffloadPartitioner",
    "PartitionFunction",
    "StorePolicy",
    "SymbolicInts",
    "apply_marks",
    "as_user_error",
    "call_directly",
    "compile_with_aot",
    "compile_with_inductor",
    "copy_saved_meta",
    "describe_marks",
    "describe_tracing",
    "emit_artifact",
    "emit_graph",
    "find_backward_placeholder",
    "find_cache_folder",
    "find_marks",
    "find_store_policy",
    "fuse_between_calls",
    "is_checkpointed",
    "is_collective",
    "is_profiling",
    "is_rng_state",
    "is_shared",
    "is_tracing",
    "is_unchecked",
    "is_wrapper_subclass",
    "keep_dynamo_graph",
    "keep_strides",
    "keeps_graph",
    "keeps_tangents",
    "lift_checkpoints",
    "list_inductor_modes",
    "list_inductor_options",
    "make_version_counter",
    "mark_regions",
    "name_rng_states",
    "outside_of_tracing",
    "runs_alone",
    "set_results",
    "skip_frame",
    "take_as_returned",
    "trace_with_inductor",
    "unlimited_recompiles",
    "watch_out_of_memory",
    "without_memory",
]
