"""What fxoffload relies on in AOTAutograd's joint graph, its partitions and what is saved."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import sympy
import torch
import toys
from compiling import Recorder, run_compiled, two_outputs
from torch import Tensor, fx
from torch._inductor.codecache import compiled_fx_graph_hash
from torch.utils.checkpoint import CheckpointPolicy
from toys import WEIGHT, Sketch, aten, make_input

from fxoffload import torch_internals
from fxoffload.graph import TrainingGraph, get_saved
from fxoffload.passes.lifetimes import find_saved_values
from fxoffload.planner.plan import Cut
from fxoffload.torch_internals import (
    Graphs,
    OffloadPartitioner,
    PartitionFunction,
    SymbolicInts,
    compile_with_aot,
    copy_saved_meta,
    find_backward_placeholder,
    is_checkpointed,
    is_rng_state,
    is_unchecked,
    set_results,
)


def test_static_inputs_are_parameters_and_buffers() -> None:
    module = torch.nn.BatchNorm1d(16)
    recorder, _ = run_compiled(lambda x: module(x).tanh().sum(), compile_with_aot)
    ((forward, _, _, static),) = recorder.calls
    inputs = forward.graph.find_nodes(op="placeholder")
    shapes = sorted(tuple(inputs[index].meta["val"].shape) for index in static)
    assert shapes == [(), (16,), (16,), (16,), (16,)]
    assert len(inputs) == len(static) + 1


def hash_graph(identity: str) -> str:
    half = Sketch().forward
    x = half.input("x", torch.empty(4))
    gm = half.finish([half.call(aten.sin.default, x)])
    partitioner = OffloadPartitioner(Recorder(), identity)
    with torch._inductor.config.patch(custom_partitioner_fn=partitioner):
        key, _ = compiled_fx_graph_hash(gm, [x.meta["val"]], {}, [])
    return key


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


def test_is_unchecked() -> None:
    node = fx.Graph().placeholder("x")
    assert not is_unchecked(node)
    node.meta["saved_tensor_with_no_vc_check"] = True
    assert is_unchecked(node)


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
