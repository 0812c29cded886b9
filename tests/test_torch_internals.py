"""What fxoffload relies on in torch's private APIs: one contract for each function."""

from __future__ import annotations

import copy
import operator
import pickle
import re
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sympy
import torch
import toys
from functorch.compile import make_boxed_func
from torch import Tensor, fx
from torch._inductor import inductor_prims, lowering
from torch._inductor.codecache import compiled_fx_graph_hash
from torch._inductor.graph import GraphLowering
from torch._inductor.ir import ComputedBuffer
from torch._inductor.virtualized import V
from torch._prims.rng_prims import run_and_save_rng_state
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy
from toys import WEIGHT, Half, Sketch, aten, make_input

from fxoffload import errors, torch_internals
from fxoffload.graph import TrainingGraph, get_saved
from fxoffload.ops import OFFLOAD, OPS, PREFETCH, WAIT
from fxoffload.passes.lifetimes import find_saved_values
from fxoffload.planner.plan import Cut
from fxoffload.torch_internals import (
    SET_OPTIONS,
    CountedByGraph,
    DynamoGraph,
    FusedAtLast,
    Graphs,
    OffloadPartitioner,
    PartitionFunction,
    StorePolicy,
    SymbolicInts,
    as_user_error,
    compilation,
    compile_with_aot,
    compile_with_inductor,
    copy_saved_meta,
    find_backward_placeholder,
    find_cache_folder,
    find_store_policy,
    is_checkpointed,
    is_collective,
    is_rng_state,
    is_shared,
    is_unchecked,
    keep_dynamo_graph,
    keep_strides,
    keeps_graph,
    keeps_tangents,
    list_inductor_modes,
    list_inductor_options,
    make_version_counter,
    mark_regions,
    outside_of_tracing,
    partitioning,
    runs_alone,
    set_results,
    take_as_aligned,
    trace_with_inductor,
    unlimited_recompiles,
    without_memory,
)

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

# --- partitioner and compilers ------------------------------------------------------------------


class Recorder:
    """Takes the partition of `share` as it is, and keeps what it was given."""

    def __init__(self, share: float | None = None) -> None:
        self.share = share
        self.calls: list[tuple[fx.GraphModule, fx.GraphModule, int, tuple[int, ...]]] = []

    def __call__(self, partition: PartitionFunction, count: int, static: Any) -> Graphs:
        forward, backward = partition(self.share)
        self.calls.append((forward, backward, count, static))
        return forward, backward


def run_compiled(
    function: Callable[..., Any], compiler: Callable[..., Any], **options: Any
) -> tuple[Recorder, Any]:
    recorder = Recorder()

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        return compiler(gm, inputs, OffloadPartitioner(recorder, "test"), **options)

    return recorder, torch.compile(function, backend=backend)(make_input())


def two_outputs(x: Tensor) -> tuple[Tensor, Tensor]:
    h = (x @ WEIGHT).tanh()
    return h.sin(), h.sum()


def test_compile_with_aot() -> None:
    recorder, results = run_compiled(two_outputs, compile_with_aot)
    torch.testing.assert_close(results, two_outputs(make_input()))
    ((forward, backward, count, static),) = recorder.calls
    assert count == 2
    assert static == ()
    assert forward.graph.find_nodes(op="call_function", target=aten.mm.default)
    assert backward.graph.find_nodes(op="call_function", target=aten.mm.default)
    expected = torch.autograd.grad(two_outputs(make_input())[1], WEIGHT)
    torch.testing.assert_close(torch.autograd.grad(results[1], WEIGHT), expected)


class ExpiredCounts(TorchDispatchMode):
    """How many of `storages` are gone when each op runs for the last time."""

    def __init__(self, storages: Sequence[StorageWeakRef]) -> None:
        super().__init__()
        self.storages = storages
        self.counts: dict[object, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func] = sum(storage.expired() for storage in self.storages)
        return func(*args, **(kwargs or {}))


def test_graphs_run_as_they_are_let_go_of_their_inputs() -> None:
    def two_layers(x: Tensor) -> Tensor:
        return ((x @ WEIGHT).tanh() @ WEIGHT).tanh()

    _, result = run_compiled(two_layers, compile_with_aot)
    saved = [StorageWeakRef(t.untyped_storage()) for t in result.grad_fn.saved_tensors]
    with ExpiredCounts(saved) as mode:
        result.backward(torch.ones_like(result))
    assert mode.counts[aten.tanh_backward.default] == 0 < mode.counts[aten.mm.default]


def test_static_inputs_are_parameters_and_buffers() -> None:
    module = torch.nn.BatchNorm1d(16)
    recorder, _ = run_compiled(lambda x: module(x).tanh().sum(), compile_with_aot)
    ((forward, _, _, static),) = recorder.calls
    inputs = forward.graph.find_nodes(op="placeholder")
    shapes = sorted(tuple(inputs[index].meta["val"].shape) for index in static)
    assert shapes == [(), (16,), (16,), (16,), (16,)]
    assert len(inputs) == len(static) + 1


def trace_only(
    gm: fx.GraphModule, inputs: Sequence[Any], partitioner: OffloadPartitioner
) -> Callable[..., Any]:
    forward = copy.deepcopy(gm).forward
    trace_with_inductor(gm, inputs, partitioner)
    return forward


def test_trace_with_inductor_generates_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("code was generated")

    monkeypatch.setattr(torch._inductor.graph.GraphLowering, "run", refuse)
    recorder, _ = run_compiled(two_outputs, trace_only)
    ((_, _, count, _),) = recorder.calls
    assert count == 2
    assert torch._inductor.config.custom_partitioner_fn is None


class FakeNode:
    """A node of Inductor's scheduler: the last of its places in the graph, and what it needs."""

    def __init__(self, name: str, max_order: int, *needs: str, op: object = None) -> None:
        self.name = name
        self.max_order = max_order
        self.unmet_dependencies = [SimpleNamespace(name=need) for need in needs]
        self.node = SimpleNamespace(op_overload=op)

    def get_buffer_names(self) -> list[str]:
        return [self.name]


def order(*nodes: FakeNode) -> list[str]:
    return [node.name for node in FusedAtLast([WAIT])(list(nodes))]


def test_fused_loops_run_where_their_last_node_stands() -> None:
    fused, product = FakeNode("fused", 9, "wait"), FakeNode("product", 5, "input")
    wait = FakeNode("wait", 8, op=WAIT)
    assert order(wait, fused, product) == ["product", "wait", "fused"]
    # A later place does not go before what needs it.
    assert order(wait, FakeNode("reader", 3, "fused"), fused) == ["wait", "fused", "reader"]


@pytest.mark.parametrize("kind", [FusedAtLast, CountedByGraph])
def test_the_order_pickles_as_its_identity(kind: Callable[..., Any]) -> None:
    """AOTAutograd's cache key is a pickle of Inductor's whole configuration."""
    found = kind([WAIT])
    assert pickle.loads(pickle.dumps(found)) == found.uuid() != kind([]).uuid()
    assert FusedAtLast([]).uuid() != CountedByGraph([]).uuid()


def test_graphs_without_transfers_keep_inductors_order() -> None:
    assert order(FakeNode("fused", 9), FakeNode("product", 5)) == ["fused", "product"]


class LoweredNode:
    """A node of Inductor's scheduler that has not been counted yet."""

    def __init__(self, *origins: fx.Node, extern: bool = False, op: object = None) -> None:
        self.min_order = self.max_order = -1
        self.node = SimpleNamespace(op_overload=op, get_origins=lambda: set(origins))
        self._extern = extern

    def get_nodes(self) -> list[LoweredNode]:
        return [self]

    def is_extern(self) -> bool:
        return self._extern


def test_calls_make_loops_far_apart_and_transfers_do_not() -> None:
    from torch._inductor.scheduler import Scheduler

    def are_far(one: LoweredNode, other: LoweredNode) -> bool:
        return Scheduler.are_long_distant_nodes(None, one, other)  # pyright: ignore

    graph = fx.Graph()
    x = graph.placeholder("x")
    before, product, between, wait, behind = (
        graph.call_function(op, (x,))
        for op in (aten.sum.default, aten.mm.default, aten.sum.default, WAIT, aten.sum.default)
    )
    nodes = [
        LoweredNode(behind),  # Made before its turn.
        LoweredNode(before),
        LoweredNode(product, extern=True),
        LoweredNode(between),
        LoweredNode(wait, extern=True, op=WAIT),
    ]
    with V.set_graph_handler(SimpleNamespace(module=SimpleNamespace(graph=graph))):
        assert CountedByGraph([WAIT])(nodes) == nodes
    orders = [node.min_order for node in nodes]
    assert sorted(orders) == [orders[index] for index in (1, 2, 3, 4, 0)]
    assert are_far(nodes[1], nodes[3]), "a product stands between them"
    assert are_far(nodes[1], nodes[0])
    assert not are_far(nodes[3], nodes[0]), "a wait takes no part in what loops may do"


MM, LOOP, OURS = "extern_kernels.mm", "cpp_fused", "aten.histc"


@pytest.fixture
def find_order(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """What the code calls that Inductor makes of a function of a matrix, ours in charge or not."""
    from torch._inductor.utils import run_and_get_code

    # Only what will not be trained is brought into another order by Inductor.
    @torch._inductor.config.patch(reorder_for_locality=False)
    def find(
        compute: Callable[[Tensor], object], *, arranges: bool, calls: Sequence[str] = (MM, LOOP)
    ) -> list[str]:
        torch._dynamo.reset()
        # A call that takes part in nothing stands for our ops.
        for module in (compilation, partitioning):
            monkeypatch.setattr(module, "OPS", [aten.histc.default] if arranges else [])

        def compute_both(x: Tensor) -> tuple[object, Tensor]:
            return compute(x), torch.histc(x, 2)

        compiled = torch.compile(compute_both, backend=compile_plainly)
        with torch._inductor.utils.fresh_cache(), torch.no_grad():
            _, (code,) = run_and_get_code(compiled, torch.ones(64, 64))
        return re.findall(
            rf"^ +.*({'|'.join(calls)})\S*\(", code.split("def call(")[1], re.MULTILINE
        )

    return find


@pytest.mark.slow
def test_inductor_calls_the_pass_behind_fusion(find_order: Callable[..., list[str]]) -> None:
    """Both sums are one loop; by default it runs in front of the op that it does not need."""

    def compute(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        product = x @ x
        first = product.sum(0)
        bins = torch.histc(x, 3)
        return first, bins, (x + product).sum(0)

    calls = (MM, LOOP, OURS)
    assert find_order(compute, arranges=False, calls=calls) == [MM, LOOP, OURS, OURS]
    assert find_order(compute, arranges=True, calls=calls) == [MM, OURS, LOOP, OURS]


@pytest.mark.slow
def test_loops_stand_where_the_graph_has_them(find_order: Callable[..., list[str]]) -> None:
    """By default a loop that a product reads through a view is made, and runs, right before it."""

    def compute(x: Tensor) -> Tensor:
        loop = x * 2
        product = x @ x
        return loop.t() @ product

    assert find_order(compute, arranges=False) == [MM, LOOP, MM]
    assert find_order(compute, arranges=True) == [LOOP, MM, MM]


@pytest.mark.slow
def test_loops_far_apart_in_the_graph_are_not_fused(find_order: Callable[..., list[str]]) -> None:
    """However few buffers they are apart."""

    def compute(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = x.sum(0)
        product = x @ x
        scaled = product
        for number in range(70):
            scaled = scaled * (number + 2)
        return first, product, (scaled * x).sum(0)

    assert find_order(compute, arranges=False) == [MM, LOOP]
    assert find_order(compute, arranges=True) == [LOOP, MM, LOOP]


@pytest.mark.slow
def test_a_loop_far_behind_is_not_fused_with_what_it_reads(
    find_order: Callable[..., list[str]],
) -> None:
    """By default the sums are made where they are read, and what they sum is kept until then."""

    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        sums = x.sum(1, keepdim=True)
        product = x @ x
        return product, (product - sums).exp()

    assert find_order(compute, arranges=False) == [MM, LOOP]
    assert find_order(compute, arranges=True) == [LOOP, MM, LOOP]


CPU_POLICY = find_store_policy(torch.device("cpu"))
OTHERS = [torch.ones(64, 64) for _ in range(20)]


def sum_others(x: Tensor, reads: int) -> Tensor:
    return sum(OTHERS[: reads - 1], start=x)


def scale(x: Tensor, ops: int) -> Tensor:
    """A loop of so many ops: the read, the constant, and the products."""
    for _ in range(ops - 2):
        x = x * 1.5
    return x


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loop", "is_stored"),
    [
        *((getattr(torch, op), True) for op in sorted(CPU_POLICY.expensive_ops)),
        *((op, False) for op in (torch.sin, torch.erf, torch.rsqrt)),
        (partial(sum_others, reads=CPU_POLICY.reused_reads), False),
        (partial(sum_others, reads=CPU_POLICY.reused_reads + 1), True),
        (partial(scale, ops=CPU_POLICY.ops), False),
        (partial(scale, ops=CPU_POLICY.ops + 1), True),
    ],
)
def test_what_inductor_stores_for_several_readers(
    find_order: Callable[..., list[str]], loop: Callable[[Tensor], Tensor], is_stored: bool
) -> None:
    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        result = loop(x)
        product = x @ x
        return result - product, result * product

    assert find_order(compute, arranges=True) == [LOOP] * is_stored + [MM, LOOP]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reads", "is_stored"), [(CPU_POLICY.reads, False), (CPU_POLICY.reads + 1, True)]
)
def test_what_inductor_stores_for_one_reader(
    find_order: Callable[..., list[str]], reads: int, is_stored: bool
) -> None:
    def compute(x: Tensor) -> Tensor:
        result = sum_others(x, reads)
        return result.sin() - x @ x

    assert find_order(compute, arranges=True) == [LOOP] * is_stored + [MM, LOOP]


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [True, False])
def test_inductor_stores_what_is_put_by_indices(
    find_order: Callable[..., list[str]], accumulate: bool
) -> None:
    """See graph.is_scatter."""
    index = torch.arange(64).flip(0)

    def compute(x: Tensor) -> Tensor:
        return torch.index_put(x, (index,), x.sin(), accumulate) - x @ x

    order = find_order(compute, arranges=True)
    assert order[order.index(MM) :] == [MM, LOOP]
    assert order[0] == LOOP


def test_thresholds_of_other_devices_and_releases() -> None:
    assert find_store_policy(torch.device("cuda")) == StorePolicy(8, 4, 30, frozenset())
    as_before_2_13 = {"realize_acc_reads_threshold": 6, "realize_opcount_threshold": 20}
    with torch._inductor.config.patch(as_before_2_13):
        policy = find_store_policy(torch.device("cpu"))
    assert (policy.reads, policy.ops) == (6, 20)
    assert policy.expensive_ops == CPU_POLICY.expensive_ops


def compile_plainly(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    return compile_with_inductor(gm, inputs, OffloadPartitioner(Recorder(), "plain"))


def test_outside_of_tracing_tensors_are_real() -> None:
    with FakeTensorMode():
        with outside_of_tracing():
            assert torch.ones(3).sum().item() == 3
        assert isinstance(torch.ones(3), FakeTensor)


def test_the_cache_folder_is_inductors() -> None:
    from torch._inductor.codecache import FxGraphCache

    with torch._inductor.utils.fresh_cache():
        assert find_cache_folder() in Path(FxGraphCache._get_tmp_dir()).parents


@pytest.mark.slow
def test_compile_with_inductor() -> None:
    options = list_inductor_modes()["max-autotune-no-cudagraphs"]
    with torch._inductor.utils.fresh_cache():
        recorder, results = run_compiled(two_outputs, compile_with_inductor, options=options)
    torch.testing.assert_close(results, two_outputs(make_input()))
    assert len(recorder.calls) == 1
    assert torch._inductor.config.custom_partitioner_fn is None


def test_modes_are_options_of_inductor() -> None:
    modes, types = list_inductor_modes(), list_inductor_options()
    assert modes["default"] == {}
    assert modes["reduce-overhead"] == {"triton.cudagraphs": True}
    assert all(set(options) <= set(types) for options in modes.values())


def test_options_of_inductor_have_types() -> None:
    types = list_inductor_options()
    assert types["shape_padding"] is bool
    assert types["triton.cudagraphs"] is bool
    assert types["layout_optimization"] is bool
    assert types["custom_partitioner_fn"] is object  # A union.
    assert isinstance(None, types["custom_partitioner_fn"])
    assert set(types) == set(torch._inductor.list_options())
    assert set(types) >= SET_OPTIONS


def test_options_hold_for_both_graphs() -> None:
    seen: list[tuple[bool, bool]] = []

    def spy(graph: fx.GraphModule, *_: Any, is_backward: bool = False, **__: Any) -> Any:
        seen.append((is_backward, torch._inductor.config.epilogue_fusion))
        return make_boxed_func(graph.forward)

    _, results = run_compiled(
        two_outputs, compile_with_inductor, options={"epilogue_fusion": False}, inner_compile=spy
    )
    results[1].backward()
    assert seen == [(False, False), (True, False)]
    assert torch._inductor.config.epilogue_fusion


def test_what_is_set_is_no_option() -> None:
    """Every option of Inductor that compiling changes is in SET_OPTIONS."""
    usual = torch._inductor.config.get_config_copy()
    found: set[str] = set()

    def look(graph: fx.GraphModule, *_: Any, **__: Any) -> Any:
        now = torch._inductor.config.get_config_copy()
        found.update(name for name in now if now[name] != usual[name])
        return make_boxed_func(graph.forward)

    _, results = run_compiled(two_outputs, compile_with_inductor, inner_compile=look)
    results[1].backward()
    assert {"custom_partitioner_fn", "layout_optimization"} <= found <= SET_OPTIONS


@pytest.mark.slow
def test_trace_with_inductor_does_not_take_a_cached_graph() -> None:
    """It would come back without a call of the partitioner."""
    with torch._inductor.utils.fresh_cache():
        for compiler in (compile_with_inductor, trace_only):
            torch._dynamo.reset()
            recorder, results = run_compiled(two_outputs, compiler)
            results[1].backward()
            assert len(recorder.calls) == 1


def hash_graph(identity: str) -> str:
    half = Sketch().forward
    x = half.input("x", torch.empty(4))
    gm = half.finish([half.call(aten.sin.default, x)])
    partitioner = OffloadPartitioner(Recorder(), identity)
    with torch._inductor.config.patch(custom_partitioner_fn=partitioner):
        key, _ = compiled_fx_graph_hash(gm, [x.meta["val"]], {}, [])
    return key


def lower(function: Callable[..., object], *inputs: Tensor) -> GraphLowering:
    """What Inductor makes of `function` before it writes code, as if passes had written its ops."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    fakes = [mode.from_tensor(x) for x in inputs]
    gm = make_fx(function)(*fakes)
    for node in gm.graph.nodes:
        node.meta.pop("eager_input_vals", None)  # Which a pass would not know of.
    graph = GraphLowering(gm, shape_env=mode.shape_env)
    with V.set_fake_mode(mode), V.set_graph_handler(graph):
        graph.run(*fakes)
    return graph


def lower_wait(device: torch.device) -> tuple[set[str], str]:
    """What Inductor calls unaligned in a graph that waits for one value, and the value's name."""

    def wait(ticket: Tensor) -> Tensor:
        return WAIT(ticket, [8, 8], [8, 1], torch.float32, device)

    graph = lower(wait, torch.empty(1, dtype=torch.int64))
    (result,) = graph.graph_outputs
    return set(graph.unaligned_buffers), result.get_name()


def lower_offload() -> list[tuple[list[int], list[int]]]:
    """Sizes and strides of the loops in a graph that moves heads which a product reads too."""

    def attend(x: Tensor) -> tuple[Tensor, Tensor]:
        heads = aten.permute(aten.view(x, [2, 5, 3, 4]), [0, 2, 1, 3])
        copy = aten.clone(heads, memory_format=torch.contiguous_format)
        ticket = OFFLOAD(copy, "store", "copy", "nvme", True, 0)
        rows = aten.view(copy, [6, 5, 4])
        return ticket, aten.bmm(rows, aten.permute(rows, [0, 2, 1]))

    loops = [
        b for b in lower(attend, torch.empty(2, 5, 12)).buffers if isinstance(b, ComputedBuffer)
    ]
    return [(list(loop.get_size()), list(loop.get_stride())) for loop in loops]


@pytest.fixture
def unknown_ops() -> Iterator[None]:
    """Inductor as if it had never met the ops."""
    before = {op: lowering.lowerings.pop(op, None) for op in (OFFLOAD, WAIT)}
    yield
    for op, function in before.items():
        lowering.lowerings.pop(op, None)
        if function is not None:
            lowering.lowerings[op] = function


def test_values_are_stored_with_the_strides_of_the_graph(unknown_ops: None) -> None:
    """Left to itself, Inductor stores the heads as they were, and copies them for the product."""
    sizes = [2, 3, 5, 4]
    (first, *copies) = lower_offload()
    assert first == (sizes, [60, 4, 12, 1])
    assert len(copies) == 2
    for _ in range(2):  # The second call finds the first one's work.
        keep_strides(OFFLOAD)
        assert lower_offload() == [(sizes, [60, 20, 4, 1])]


@pytest.mark.parametrize("met", [True, False])
def test_values_on_cuda_are_taken_as_aligned(unknown_ops: None, met: bool) -> None:
    """Fake CUDA tensors; without our lowering the ticket, a CPU input, would spoil the value."""
    cuda = torch.device("cuda", 0)
    if met:
        unaligned, result = lower_wait(cuda)
        assert result in unaligned
    for _ in range(2):  # The second call finds the first one's work.
        take_as_aligned(WAIT)
        unaligned, result = lower_wait(cuda)
        assert result not in unaligned
        assert len(unaligned) == 1  # The ticket.
    # Host tensors may come back at any address (see runtime/devices/host.py).
    unaligned, result = lower_wait(torch.device("cpu"))
    assert result in unaligned


def test_compiling_adapts_what_inductor_makes_of_the_ops(unknown_ops: None) -> None:
    run_compiled(two_outputs, compile_with_inductor, inner_compile=skip_code)
    unaligned, result = lower_wait(torch.device("cuda", 0))
    assert result not in unaligned
    assert len(lower_offload()) == 1


OPTIONS = ("allow_buffer_reuse", "reorder_for_peak_memory", "layout_optimization")


@pytest.mark.parametrize(
    ("op", "trains", "expected"),
    [
        (aten.mm.default, True, [False, False, False]),  # In both graphs, as if it were ours.
        (PREFETCH, True, [True, True, False]),  # In none.
        (PREFETCH, False, [True, True, True]),
    ],
)
def test_graphs_without_transfers_are_plain_inductors(
    op: object, trains: bool, expected: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[bool]] = []

    def spy(gm: fx.GraphModule, *_: Any, **__: Any) -> Callable[..., Any]:
        found.append([bool(getattr(torch._inductor.config, name)) for name in OPTIONS])
        return make_boxed_func(gm.forward)

    for module in (compilation, partitioning):
        monkeypatch.setattr(module, "OPS", [op])
    defaults = dict.fromkeys(OPTIONS, True)
    with torch.set_grad_enabled(trains), torch._inductor.config.patch(defaults):
        _, results = run_compiled(two_outputs, compile_with_inductor, inner_compile=spy)
        if trains:
            results[1].backward()
    assert found == [expected] * (2 if trains else 1)


def skip_code(gm: fx.GraphModule, *_: Any, **__: Any) -> Callable[..., Any]:
    return make_boxed_func(gm.forward)


def keep_regions(graph: fx.Graph, ops: Sequence[object]) -> None:
    """In place of mark_regions."""


@pytest.mark.parametrize(
    ("between", "mark", "folded"),
    [
        ("prefetch", keep_regions, True),  # Inductor has not seen it.
        ("prefetch", mark_regions, False),
        ("product", mark_regions, False),  # Of a graph with transfers.
        ("product", lambda graph, ops: mark_regions(graph, []), True),
        ("nothing", mark_regions, True),
    ],
)
def test_inductor_matches_nothing_across_transfers_and_calls(
    between: str, mark: Callable[..., None], folded: bool
) -> None:
    from torch._inductor.fx_passes import post_grad
    from torch._inductor.pattern_matcher import compute_mutation_region_ids

    half = Sketch().backward
    a, b, c = (half.input(name, torch.empty(8, 8)) for name in "abc")
    ticket = half.input("ticket", torch.empty(1, dtype=torch.int64))
    product = half.call(aten.mm.default, a, b)
    add = half.call(aten.add.Tensor, product, c)
    gm = half.finish([add])
    compute_mutation_region_ids(gm.graph)  # As in a joint graph.
    with gm.graph.inserting_before(add if between == "prefetch" else product):
        gm.graph.call_function(PREFETCH, (ticket,))
    if between == "product":
        with gm.graph.inserting_before(add):
            gm.graph.call_function(aten.mm.default, (a, b))
    mark(gm.graph, OPS)
    with V.set_fake_mode(half.mode):
        post_grad.pass_patterns[2].apply(gm)
    found = bool(gm.graph.find_nodes(op="call_function", target=aten.addmm.default))
    assert found is folded


def test_a_partition_has_no_mutation_regions() -> None:
    recorder, _ = run_compiled(two_outputs, trace_only)
    ((forward, backward, _, _),) = recorder.calls
    for node in (*forward.graph.nodes, *backward.graph.nodes):
        assert "mutation_region_id" not in node.meta


def test_identity_is_in_inductors_cache_key() -> None:
    assert OffloadPartitioner(Recorder(), "one").uuid() == "one"
    assert hash_graph("one") == hash_graph("one")
    assert hash_graph("one") != hash_graph("two")


def test_partitioner_pickles_as_its_identity() -> None:
    """AOTAutograd pickles Inductor's whole configuration; our transform is a closure."""
    partitioner = OffloadPartitioner(lambda *_: ..., "identity")
    assert pickle.loads(pickle.dumps(partitioner)) == "identity"
    with torch._inductor.config.patch(custom_partitioner_fn=partitioner):
        assert b"identity" in pickle.dumps(torch._inductor.config.save_config_portable())


def partition_by_cuts(function: Callable[..., Any], *cuts: Cut) -> tuple[list[TrainingGraph], Any]:
    """The partition for each cut, and the result of the last one."""
    graphs: list[TrainingGraph] = []

    def choose(partition: PartitionFunction, count: int, static: Any) -> Graphs:
        for cut in cuts:
            forward, backward = partition(cut)
            graphs.append(TrainingGraph(forward, backward, count))
        return forward, backward

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        return compile_with_aot(gm, inputs, OffloadPartitioner(choose, "test"))

    return graphs, torch.compile(function, backend=backend)(make_input())


def test_partition_of_a_share_saves_less() -> None:
    """Asked for twice, so that the first must have left the joint graph as it was."""
    graphs, result = partition_by_cuts(toys.deep, None, 0.0, None)
    torch.testing.assert_close(result, toys.deep(make_input()))
    first, less, again = (len(get_saved(graph)) for graph in graphs)
    assert first == again > less


def test_cut_of_loops_recomputes_what_they_give_to_calls() -> None:
    """A gelu between two products: the backward reads its operand and its result."""
    weight = WEIGHT.clone().requires_grad_()

    def function(x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + torch.nn.functional.gelu(x @ weight) @ weight
        return x.sin().sum()

    graphs, result = partition_by_cuts(function, 1.0, "loops")
    torch.testing.assert_close(result, function(make_input()))
    own, loops = (
        Counter(value.name.split("_")[0] for value in find_saved_values(graph) if value.owned)
        for graph in graphs
    )
    assert own == {"gelu": 3, "mm": 3, "add": 2, "cos": 1}
    assert loops == {"mm": 3, "add": 2, "cos": 1}, "no chain from layer to layer"


def checkpointed(x: Tensor) -> Tensor:
    return torch.utils.checkpoint.checkpoint(toys.deep, x, use_reentrant=False)


def test_what_is_checkpointed_may_be_saved_all_the_same() -> None:
    graphs, result = partition_by_cuts(checkpointed, None, 1.0, None)
    torch.testing.assert_close(result, toys.deep(make_input()))
    (plain, _) = partition_by_cuts(toys.deep, None)
    assert [is_checkpointed(graph.forward.graph) for graph in graphs] == [True, False, True]
    own, lifted, again = (len(get_saved(graph)) for graph in graphs)
    assert own == again < lifted == len(get_saved(plain[0]))


def test_collectives_are_told_from_other_ops() -> None:
    gather = torch.ops._c10d_functional.all_gather_into_tensor.default
    targets = (gather, torch.ops._c10d_functional.wait_tensor.default, aten.sin.default)
    found = [is_collective(fx.Graph().call_function(target)) for target in targets]
    assert found == [True, True, False]


def test_what_must_be_recomputed_is() -> None:
    """By a policy of selective checkpointing, which leaves nothing to the compiler."""

    def decide(*_: Any, **__: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_RECOMPUTE

    contexts = partial(torch.utils.checkpoint.create_selective_checkpoint_contexts, decide)

    def function(x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(
            toys.deep, x, use_reentrant=False, context_fn=contexts
        )

    graphs, _ = partition_by_cuts(function, None, 1.0)
    own, lifted = (len(get_saved(graph)) for graph in graphs)
    (plain, _) = partition_by_cuts(toys.deep, None)
    assert not is_checkpointed(graphs[0].forward.graph)
    assert own == lifted < len(get_saved(plain[0]))


def test_rng_states_of_checkpoints_have_one_name_in_both_graphs() -> None:
    def dropped(x: Tensor) -> Tensor:
        return torch.nn.functional.dropout((x @ WEIGHT).tanh(), 0.5) @ WEIGHT

    def function(x: Tensor) -> Tensor:
        x = torch.utils.checkpoint.checkpoint(dropped, x, use_reentrant=False)
        return torch.utils.checkpoint.checkpoint(dropped, x, use_reentrant=False).sum()

    (graph,), _ = partition_by_cuts(function, None)
    placeholders = {node.name for node in graph.backward.graph.find_nodes(op="placeholder")}
    saved = get_saved(graph)
    states = [node.name for node in saved if is_rng_state(node)]
    assert len(states) == 2
    assert states == sorted(name for name in placeholders if "rng_state" in name)
    assert {node.name for node in saved} <= placeholders


def test_a_kept_dynamo_graph_compiles_again_without_dynamo() -> None:
    """To the same results and static inputs, and what another process would then find in caches."""
    kept: list[tuple[DynamoGraph, Sequence[Any]]] = []
    static: list[tuple[int, ...]] = []

    def choose(partition: PartitionFunction, count: int, indices: tuple[int, ...]) -> Graphs:
        static.append(indices)
        return partition(None)

    def build(gm: fx.GraphModule, inputs: Sequence[Any], identity: str) -> Callable[..., Any]:
        partitioner = OffloadPartitioner(choose, identity)
        return compile_with_inductor(gm, inputs, partitioner)

    def keep(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        graph = keep_dynamo_graph(gm)
        assert graph is not None
        kept.append((graph, inputs))
        return build(gm, inputs, "first")  # Which changes gm.

    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh()), torch.randn(4, 8)
    parameters = list(model.parameters())
    with torch._inductor.utils.fresh_cache():
        expected = torch.compile(model, backend=keep)(x)
        gradients = torch.autograd.grad(expected.sum(), parameters)
        ((graph, inputs),) = kept
        with graph.compiling(inputs) as gm:
            again = build(gm, inputs, "second")
        assert len(static) == 2
        assert static[0] == static[1]
        assert len(static[0]) == 2
        (result,) = again(*inputs)
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(torch.autograd.grad(result.sum(), parameters), gradients)
        torch._dynamo.reset()
        backend = partial(build, identity="second")
        torch.testing.assert_close(torch.compile(model, backend=backend)(x), expected)
        assert len(static) == 2  # Nothing was partitioned: it came out of the cache.


def test_a_dynamo_graph_of_symbolic_sizes_is_not_kept() -> None:
    kept: list[DynamoGraph | None] = []

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        kept.append(keep_dynamo_graph(gm))
        return gm.forward

    torch.compile(lambda x: x.sin() * x.shape[0], backend=backend, dynamic=True)(torch.randn(4, 8))
    assert kept == [None]


# --- memory -------------------------------------------------------------------------------------


def test_whether_tangents_live_until_the_backward_has_returned() -> None:
    died: list[bool] = []

    @torch.library.custom_op("fxoffload_test::look", mutates_args=())
    def look(x: Tensor) -> Tensor:
        seen.append(bool(died))
        return x.clone()

    look.register_fake(torch.empty_like)
    seen: list[bool] = []

    class Looking(torch.autograd.Function):
        """The last op of the backward looks whether the gradient that came in is still there."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return torch.ops.fxoffload_test.look(2 * gradient)

    class Sum(torch.autograd.Function):
        """Its gradient is one that tells when it dies."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.sum()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            array = np.ones((8, 8), np.float32)
            weakref.finalize(array, lambda: died.append(True))
            return torch.from_numpy(array)

    compiled = torch.compile(lambda x, w: Looking.apply(x) @ w, backend="aot_eager")
    x, w = (torch.randn(8, 8, requires_grad=True) for _ in range(2))
    Sum.apply(compiled(x, w)).backward()
    assert seen == [not keeps_tangents()]


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [errors.ConfigError, errors.StoreFull])
def test_user_error_passes_through_torch_compile(kind: type[errors.OffloadError]) -> None:
    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        raise as_user_error(kind("subject: fact; remedy"))

    with pytest.raises(kind) as caught:
        torch.compile(torch.sin, backend=backend)(torch.ones(2))
    assert type(caught.value).__name__ == kind.__name__
    shown = traceback.format_exception_only(caught.value)
    assert shown == [f"fxoffload.errors.{kind.__name__}: subject: fact; remedy\n"]


def test_user_error_keeps_what_it_knows() -> None:
    error = errors.BudgetError("subject: fact; remedy")
    error.lowest_peak_bytes = 17
    shown = as_user_error(error)
    assert isinstance(shown, errors.BudgetError)
    assert shown.lowest_peak_bytes == 17


def test_plain_error_is_wrapped() -> None:
    """Why as_user_error exists; should torch stop wrapping, it can go."""

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        raise errors.ConfigError("subject: fact; remedy")

    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed):
        torch.compile(torch.sin, backend=backend)(torch.ones(2))


# --- backward -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"retain_graph": False}, False),
        ({"retain_graph": True}, True),
        ({"create_graph": True}, True),
    ],
)
def test_keeps_graph(options: dict[str, bool], expected: bool) -> None:
    x = torch.ones(2, requires_grad=True)
    seen: list[bool] = []
    y = x * x
    y.register_hook(lambda _: seen.append(keeps_graph()))
    torch.autograd.grad(y.sum(), x, **options)
    assert seen == [expected]


def test_make_version_counter() -> None:
    """Also within the kernel of an op, below autograd."""
    library = torch.library.Library("counters", "FRAGMENT")
    library.define("look(Tensor x) -> ()")
    counters: list[Tensor | None] = []
    library.impl(
        "look", lambda x: counters.append(make_version_counter(x)), "CompositeExplicitAutograd"
    )
    x = torch.ones(5, requires_grad=True) * 1
    counters.append(make_version_counter(x))
    torch.ops.counters.look(x)
    with torch.no_grad():
        x[1:].add_(1)
    for counter in counters:
        assert counter is not None
        assert counter._version == x._version == 1
        assert counter.untyped_storage().nbytes() == 0
    with torch.inference_mode():
        assert make_version_counter(torch.ones(5)) is None


def test_is_unchecked() -> None:
    node = fx.Graph().placeholder("x")
    assert not is_unchecked(node)
    node.meta["saved_tensor_with_no_vc_check"] = True
    assert is_unchecked(node)


@pytest.mark.parametrize("shape", [(1000,), (0,)])
def test_is_shared(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape)
    assert not is_shared(x)
    view = x.detach()
    assert is_shared(x)
    assert is_shared(view)
    del x
    assert not is_shared(view)


def test_keeps_graph_outside_of_a_backward() -> None:
    assert keeps_graph() is True


def test_keeps_graph_of_the_inner_backward() -> None:
    """A backward inside a backward is asked for itself."""
    x = torch.ones(2, requires_grad=True)
    seen: list[bool] = []

    def hook(_: Tensor) -> None:
        with torch.enable_grad():
            y = x.detach().requires_grad_().sin()
            y.register_hook(lambda _: seen.append(keeps_graph()))
            y.sum().backward()
        seen.append(keeps_graph())

    y = x * x
    y.register_hook(hook)
    y.sum().backward(retain_graph=True)
    assert seen == [False, True]


# --- nodes --------------------------------------------------------------------------------------


def test_saved_values_have_one_name_in_both_graphs(zoo_graph: TrainingGraph) -> None:
    placeholders = {n.name: n for n in zoo_graph.backward.graph.find_nodes(op="placeholder")}
    saved = get_saved(zoo_graph)
    assert saved
    for node in saved:
        found = find_backward_placeholder(placeholders, node)
        assert found.op == "placeholder"
        value, other = node.meta["val"], found.meta["val"]
        assert (value.shape, value.stride(), value.dtype) == (
            other.shape,
            other.stride(),
            other.dtype,
        )


def test_saved_values_follow_the_outputs() -> None:
    graph = toys.trace(two_outputs, make_input())
    assert graph.num_outputs == 2
    assert len(get_saved(graph)) == len(graph.backward.graph.find_nodes(op="placeholder")) - 2


def test_set_results() -> None:
    graph = toys.make_chain(3)
    forward = graph.forward.graph
    output = next(iter(forward.find_nodes(op="output")))
    out, first, _, third = output.args[0]
    output.meta["desc"] = ["out", "first", "second", "third"]
    set_results(forward, [out, third, first], [0, 3, 1])
    assert output.args == ((out, third, first),)
    assert output.meta["desc"] == ["out", "third", "first"]
    forward.lint()


def test_set_results_without_descriptors() -> None:
    graph = toys.make_chain(1)
    output = next(iter(graph.forward.graph.find_nodes(op="output")))
    set_results(graph.forward.graph, [output.args[0][0]], [0])
    assert "desc" not in output.meta


def test_traced_graphs_have_a_descriptor_for_each_result(zoo_graph: TrainingGraph) -> None:
    for module in (zoo_graph.forward, zoo_graph.backward):
        output = next(iter(module.graph.find_nodes(op="output")))
        assert len(output.meta["desc"]) == len(output.args[0])


@pytest.mark.parametrize("mark", [True, False, None])
def test_copy_saved_meta(mark: bool | None) -> None:
    half = Sketch().forward
    source, target = half.input("x", torch.empty(2)), half.input("y", torch.empty(2))
    if mark is not None:
        source.meta["saved_tensor_with_no_vc_check"] = mark
    copy_saved_meta(source, target)
    assert target.meta.get("saved_tensor_with_no_vc_check", False) is bool(mark)


def test_rng_states() -> None:
    half: Half = Sketch().forward
    both = half.graph.call_function(run_and_save_rng_state, (aten.rand.default, [4]))
    state = half.graph.call_function(operator.getitem, (both, 0))
    value = half.graph.call_function(operator.getitem, (both, 1))
    assert is_rng_state(state)
    assert not is_rng_state(value)
    assert is_rng_state(half.input("fwd_rng_state_0", torch.empty(16, dtype=torch.uint8)))
    assert not is_rng_state(half.input("primals_1", torch.empty(16)))
    other = half.call(aten.sort.default, half.input("x", torch.empty(4)))
    assert not is_rng_state(half.call(operator.getitem, other, 0))


ATTENTION_ON_CUDA = (
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
)


@pytest.mark.parametrize("attention", ATTENTION_ON_CUDA)
def test_what_attention_drew_is_an_rng_state(attention: Any) -> None:
    """Two results of each: seed and offset, or the pair and what is left of it."""
    half: Half = Sketch().forward
    both = half.graph.call_function(attention, ())
    count = len(attention._schema.returns)
    states = [
        is_rng_state(half.graph.call_function(operator.getitem, (both, index)))
        for index in range(count)
    ]
    assert sum(states) == 2
    assert not any(states[:2])  # What it computes, and the sums of its softmax.


def test_parts_of_a_list_are_no_rng_states() -> None:
    half: Half = Sketch().forward
    parts = half.graph.call_function(aten.split.Tensor, ())
    assert not is_rng_state(half.graph.call_function(operator.getitem, (parts, 3)))


def test_inductors_seeds_are_rng_states() -> None:
    half: Half = Sketch().forward
    for target, args in ((inductor_prims.seed, ()), (inductor_prims.seeds, (2,))):
        assert is_rng_state(half.graph.call_function(target, (*args, torch.device("cpu"))))


@pytest.mark.parametrize(
    ("target", "alone"),
    [
        (aten.mm.default, True),
        (aten.addmm.default, True),
        (aten.convolution.default, True),
        (aten._scaled_dot_product_flash_attention_for_cpu.default, True),
        (aten._scaled_dot_product_flash_attention_for_cpu_backward.default, True),
        (aten.histc.default, True),
        (run_and_save_rng_state, True),
        (PREFETCH, True),  # An op that Inductor may not have met yet.
        (aten.sin.default, False),
        (aten.sum.dim_IntList, False),
        (aten.gather.default, False),
        (aten.var_mean.correction, False),
        (operator.getitem, False),
    ],
)
def test_what_runs_alone(target: Any, alone: bool) -> None:
    assert runs_alone(fx.Graph().call_function(target)) is alone


# --- symbolic sizes -----------------------------------------------------------------------------


def make_symbolic() -> tuple[fx.Graph, torch.SymInt]:
    """A backward with a placeholder that binds a symbol (hint 8), and the symbol."""
    graph = toys.trace_dynamic(toys.deep).backward.graph
    (size, *_) = (
        node.meta["val"]
        for node in graph.find_nodes(op="placeholder")
        if isinstance(node.meta["val"], torch.SymInt)
    )
    return graph, size


@pytest.mark.parametrize(
    ("compute", "name"),
    [
        (lambda s: s, "s"),
        (lambda s: s * 4, "4s"),
        (lambda s: s + 1, "s+1"),
        (lambda s: (s * 3 + 2) * 5, "5(3s+2)"),
        (lambda s: (s * 48) // 3, "16s"),
        (lambda s: s // 2, "s//2"),
        (lambda s: s % 5, "s%5"),
        (lambda s: s * s, "s*s"),
    ],
)
def test_symbolic_ints(compute: Callable[[Any], Any], name: str) -> None:
    graph, size = make_symbolic()
    result = SymbolicInts(graph).emit(compute(size))
    assert isinstance(result, fx.Node)
    assert torch_internals.SymbolicInts(graph).emit(7) == 7
    graph.lint()
    # Evaluated for other sizes than the traced one.
    for rows in (8, 5, 23):
        values: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                values[node] = rows
            elif node.op == "call_function" and (node < result or node is result):
                values[node] = node.target(*fx.map_arg(node.args, values.__getitem__))
        assert values[result] == compute(rows)
    assert result.meta["val"].node.hint == compute(8)


def test_symbolic_ints_are_emitted_once_below_the_placeholders() -> None:
    graph, size = make_symbolic()
    symbols = SymbolicInts(graph)
    first = symbols.emit(size * 4)
    count = len(graph.nodes)
    assert symbols.emit(size * 4) is first
    assert len(graph.nodes) == count
    ops = [node.op for node in graph.nodes]
    assert ops[: ops.index("call_function")] == ["placeholder"] * ops.index("call_function")
    assert isinstance(first, fx.Node)
    assert ops.index("call_function") == list(graph.nodes).index(first)


def test_constant_expression_is_an_int() -> None:
    graph, size = make_symbolic()
    zero = size - size
    assert SymbolicInts(graph).emit(zero) == 0
    assert not isinstance(SymbolicInts(graph).emit(sympy_int(size)), fx.Node)


def sympy_int(size: torch.SymInt) -> Any:
    """A SymInt whose expression is the constant 12."""
    return size.node.shape_env.create_symintnode(sympy.Integer(12), hint=12)


# --- tensors without memory ---------------------------------------------------------------------


def test_tensors_without_memory() -> None:
    with torch.device("meta"):
        module = torch.nn.Linear(2**20, 2**20)  # Four TiB.
    module.bias.requires_grad_(False)
    with without_memory() as copy_without_memory:
        shadow = copy_without_memory(module)
        x, (y, one) = copy_without_memory((torch.ones(2, 2**20).t(), [torch.ones(3), 1]))
        made = shadow(x.t())
    assert (shadow.weight.device.type, shadow.weight.size()) == ("cpu", module.weight.size())
    assert isinstance(shadow.weight, torch.nn.Parameter)
    assert (shadow.weight.requires_grad, shadow.bias.requires_grad) == (True, False)
    assert (x.stride(), y.size(), one) == ((1, 2**20), (3,), 1)
    assert made.size() == (2, 2**20)
    assert module.weight.device.type == "meta"


def test_tied_parameters_stay_tied_without_memory() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    module[1].weight = module[0].weight
    with without_memory() as copy_without_memory:
        shadow = copy_without_memory(module)
    assert shadow[0].weight is shadow[1].weight


def test_every_size_is_traced_anew() -> None:
    """Dynamo would stop at its limit, and run what follows in eager mode."""
    traced: list[int] = []

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        traced.append(inputs[0].size(0))
        return gm.forward

    def double(x: Tensor) -> Tensor:
        return 2 * x

    sizes = list(range(2, 2 + 2 * torch._dynamo.config.recompile_limit))
    compiled = torch.compile(double, backend=backend, dynamic=False)
    with unlimited_recompiles():
        for size in sizes:
            compiled(torch.ones(size))
    assert traced == sizes
