"""Marks of a program reach the joint graph, and leave no node in what is compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import toys
from compiling import Recorder
from torch import Tensor, fx
from torch._functorch import config as functorch_config
from torch.fx.traceback import get_current_meta
from torch.utils.checkpoint import CheckpointPolicy, checkpoint
from toys import WEIGHT, aten, make_input

import fxoffload
from fxoffload.graph import TrainingGraph, get_saved
from fxoffload.marks import ANNOTATION, KEEP, KEEPING, MOVE, POLICY
from fxoffload.planner.plan import Cut
from fxoffload.torch_internals import (
    Graphs,
    MarkPass,
    OffloadPartitioner,
    PartitionFunction,
    apply_marks,
    compile_with_aot,
    compile_with_inductor,
    describe_marks,
    find_marks,
    trace_with_inductor,
)

Decide = Callable[..., CheckpointPolicy]


def marked(x: Tensor) -> Tensor:
    h = fxoffload.move((x @ WEIGHT).tanh())
    g = fxoffload.keep((h @ WEIGHT).sigmoid())
    with fxoffload.keeping():
        f = (g @ WEIGHT).exp()
    return (f @ WEIGHT).tanh().sum()


def under_policy(decide: Decide, function: Callable[[Tensor], Tensor] = toys.deep) -> Any:
    contexts = partial(torch.utils.checkpoint.create_selective_checkpoint_contexts, decide)

    def run(x: Tensor) -> Tensor:
        return checkpoint(function, x, use_reentrant=False, context_fn=contexts)

    return run


def offload_products(policy: CheckpointPolicy) -> Decide:
    def decide(_: object, op: object, *args: object, **kwargs: object) -> CheckpointPolicy:
        return policy if op is aten.mm.default else CheckpointPolicy.PREFER_RECOMPUTE

    return decide


def partition(
    function: Callable[..., Any], cut: Cut = None, *, inductor: bool = False
) -> TrainingGraph:
    """The graphs of `function` by `cut`; by Inductor behind its passes over the joint graph."""
    found: list[TrainingGraph] = []

    def choose(cuts: PartitionFunction, count: int, static: Sequence[int]) -> Graphs:
        forward, backward = cuts(cut)
        found.append(TrainingGraph(forward, backward, count))
        return forward, backward

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        partitioner = OffloadPartitioner(choose, "test")
        if inductor:
            trace_with_inductor(gm, inputs, partitioner)
            return gm.forward
        return compile_with_aot(gm, inputs, partitioner)

    torch._dynamo.reset()
    torch.compile(function, backend=backend, fullgraph=True)(make_input())
    return found[0]


def find_by_mark(graph: TrainingGraph) -> dict[str, frozenset[str]]:
    nodes = graph.forward.graph.nodes
    return {node.name: find_marks(node) for node in nodes if find_marks(node)}


def count_aliases(graph: TrainingGraph) -> int:
    return sum(
        len(module.graph.find_nodes(op="call_function", target=aten.alias.default))
        for module in (graph.forward, graph.backward)
    )


@pytest.mark.parametrize("inductor", [False, True], ids=["aot", "inductor"])
def test_marks_reach_the_graphs_and_leave_no_node(inductor: bool) -> None:
    graph = partition(marked, inductor=inductor)
    marks = find_by_mark(graph)
    assert marks["tanh"] == {MOVE}
    assert marks["sigmoid"] == {KEEP}
    assert marks["exp"] == {KEEPING}
    assert count_aliases(graph) == 0
    readers = [node for node in graph.backward.graph.nodes if KEEPING in find_marks(node)]
    assert any(node.target is aten.mm.default for node in readers), "of the product's gradients"
    assert not all(KEEPING in find_marks(node) for node in graph.backward.graph.nodes)
    assert {"tanh", "sigmoid"} <= {node.name for node in get_saved(graph)}


def test_marks_go_through_checkpoints() -> None:
    """What a mark names is saved, and not recomputed."""
    graph = partition(lambda x: checkpoint(marked, x, use_reentrant=False))
    saved = {node.name for node in get_saved(graph)}
    assert {"tanh", "sigmoid"} <= saved
    assert "exp" not in saved, "a region leaves the choice to the program"
    assert find_by_mark(graph)["exp"] == {KEEPING}


@pytest.mark.parametrize("cut", [None, "loops", 1.0, 0.5, 0.0])
def test_marked_values_are_saved_by_every_cut(cut: Cut) -> None:
    assert {"tanh", "sigmoid"} <= {node.name for node in get_saved(partition(marked, cut))}
    with functorch_config.patch(activation_memory_budget=0.0):
        assert {"tanh", "sigmoid"} <= {node.name for node in get_saved(partition(marked, None))}


@pytest.mark.parametrize("inductor", [False, True], ids=["aot", "inductor"])
def test_of_two_nodes_that_compute_the_same_the_one_that_is_left_is_marked(inductor: bool) -> None:
    def function(x: Tensor) -> Tensor:
        g = (x @ WEIGHT).tanh()
        h = fxoffload.keep(fxoffload.move((x @ WEIGHT).tanh()))
        return (g @ WEIGHT @ h).sum()

    graph = partition(function, inductor=inductor)
    assert find_by_mark(graph) == {"tanh": {KEEP, MOVE}}
    assert count_aliases(graph) == 0


def test_a_marked_result_is_still_a_result() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        h = (x @ WEIGHT).tanh()
        return h, fxoffload.keep(h)

    graph = partition(function)
    assert find_by_mark(graph)["tanh"] == {KEEP}
    h, kept = torch.compile(function, backend=compile_by(compile_with_aot))(make_input())
    assert torch.equal(h, kept)


def test_a_second_call_changes_nothing() -> None:
    graph = partition(marked)
    marks, code = find_by_mark(graph), graph.forward.print_readable(print_output=False)
    apply_marks(graph.forward.graph)
    graph.forward.recompile()
    assert (find_by_mark(graph), graph.forward.print_readable(print_output=False)) == (marks, code)


# --- policies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("inductor", [False, True], ids=["aot", "inductor"])
@pytest.mark.parametrize("cut", [None, 0.0])
@pytest.mark.parametrize(
    ("policy", "marks"), [("MUST_CPU_OFFLOAD", {POLICY}), ("PREFER_CPU_OFFLOAD", set[str]())]
)
def test_policies_that_offload_save(policy: str, marks: set[str], cut: Cut, inductor: bool) -> None:
    decide = offload_products(CheckpointPolicy[policy])
    graph = partition(under_policy(decide), cut, inductor=inductor)
    products = [n for n in graph.forward.graph.nodes if n.target is aten.mm.default]
    saved = [node for node in get_saved(graph) if node.target is aten.mm.default]
    assert len(saved) == len(products) >= 3
    assert all(find_marks(node) == marks for node in saved)


def test_a_policy_of_all_ops_marks_no_view_of_an_input() -> None:
    """Such as the transpose of a parameter, which is no result of the program."""
    linear = torch.nn.Linear(16, 16)
    decide = under_policy(
        lambda *_, **__: CheckpointPolicy.MUST_CPU_OFFLOAD, lambda x: linear(x).tanh().sum()
    )
    marks = find_by_mark(partition(decide))
    assert "tanh" in marks
    assert not any(name.startswith(("t_", "permute", "primals")) or name == "t" for name in marks)


def test_torchs_own_offloading_is_off() -> None:
    """What its pass would move twice. It looks at another key in the meta of nodes."""

    def choose(cuts: PartitionFunction, count: int, static: Sequence[int]) -> Graphs:
        seen.append(functorch_config.enable_activation_offloading)
        return cuts(None)

    seen: list[bool] = []
    asked: list[bool] = []

    def offload(*_: object) -> None:
        asked.append(True)

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        return compile_with_aot(gm, inputs, OffloadPartitioner(choose, "test"))

    from torch._functorch._activation_offloading import activation_offloading

    with (
        pytest.MonkeyPatch.context() as patch,
        functorch_config.patch(enable_activation_offloading=True),
    ):
        patch.setattr(activation_offloading, "enable_activation_offloading", offload)
        torch.compile(marked, backend=backend)(make_input())
    assert (seen, asked) == ([True], [])


# --- inference, caches, Inductor's passes -------------------------------------------------------


def compile_by(compiler: Callable[..., Any], found: list[fx.GraphModule] | None = None) -> Any:
    """A backend; `found` takes the Dynamo graphs."""

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        if found is not None:
            found.append(gm)
        return compiler(gm, inputs, OffloadPartitioner(Recorder(), "test"))

    return backend


def test_an_inference_graph_has_no_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    from fxoffload.torch_internals import compilation

    graphs: list[fx.GraphModule] = []

    def run(gm: fx.GraphModule, *_: object) -> Callable[..., Any]:
        graphs.append(gm)
        return boxed_nop(gm, *_)

    boxed_nop = compilation.boxed_nop
    monkeypatch.setattr(compilation, "boxed_nop", run)
    with torch.no_grad():
        compiled = torch.compile(marked, backend=compile_by(compile_with_aot))
        torch.testing.assert_close(compiled(make_input()), marked(make_input()))
    assert [n for gm in graphs for n in gm.graph.nodes if n.target is aten.alias.default] == []
    assert len(graphs) == 1


def describe(function: Callable[..., Any]) -> str:
    found: list[fx.GraphModule] = []
    torch._dynamo.reset()
    torch.compile(function, backend=compile_by(lambda gm, *_: gm.forward, found))(make_input())
    return describe_marks(found[0])


def test_graphs_with_other_marks_are_described_otherwise() -> None:
    """Their code is the same."""

    def within(x: Tensor) -> Tensor:
        with fxoffload.keeping():
            return x.sin()

    functions = [
        lambda x: x.sin(), lambda x: fxoffload.keep(x.sin()), lambda x: fxoffload.move(x.sin()),
        within,
    ]  # fmt: skip
    assert len({describe(function) for function in functions}) == 4
    assert describe(functions[1]) == describe(functions[1])


@pytest.mark.parametrize("inductor", [False, True], ids=["aot", "inductor"])
def test_a_region_around_a_compilation_is_not_seen(inductor: bool) -> None:
    def function(x: Tensor) -> Tensor:
        return (x @ WEIGHT).tanh().sum()

    with fxoffload.keeping():
        graph = partition(function, inductor=inductor)
        nodes = [*graph.forward.graph.nodes, *graph.backward.graph.nodes]
        assert not any(map(find_marks, nodes))
        assert get_current_meta()["custom"] == {ANNOTATION: KEEPING}
    assert "custom" not in get_current_meta()


def test_torch_compiles_no_function_with_a_graph_break_in_a_region() -> None:
    """What the docstring of `keeping` says; what it calls is compiled, by itself."""
    found: list[fx.GraphModule] = []

    def function(x: Tensor) -> Tensor:
        with fxoffload.keeping():
            x = x.sin()
            torch._dynamo.graph_break()
            x = toys.deep(x)
        return x.cos()

    torch.compile(function, backend=compile_by(lambda gm, *_: gm.forward, found))(make_input())
    assert [len(gm.graph.find_nodes(op="call_method", target="sin")) for gm in found] == [0]


def test_policies_are_described_by_their_hash() -> None:
    """By which torch's caches tell them apart, too; without one, as objects of this process."""
    alive: list[object] = []

    def build(name: str | None) -> Callable[[Tensor], Tensor]:
        def contexts() -> Any:
            decide = offload_products(CheckpointPolicy.MUST_CPU_OFFLOAD)
            return torch.utils.checkpoint.create_selective_checkpoint_contexts(decide)

        alive.append(contexts)
        if name is not None:
            contexts.cache_hash = name  # pyright: ignore[reportFunctionMemberAccess]

        def run(x: Tensor) -> Tensor:
            return checkpoint(toys.deep, x, use_reentrant=False, context_fn=contexts)

        return run

    assert describe(build("a")) == describe(build("a")) != describe(build("b"))
    assert describe(build(None)) != describe(build(None))


class Seen(MarkPass):
    """Takes the marks of each graph that it is called for."""

    def __init__(self, identity: Any) -> None:
        self.identity = identity
        self.marks: list[dict[str, frozenset[str]]] = []

    def __call__(self, graph: fx.Graph) -> None:
        self.marks.append({node.name: find_marks(node) for node in graph.nodes})

    def uuid(self) -> Any:
        return self.identity


@pytest.mark.parametrize("several", [False, True])
def test_passes_of_the_user_run_behind_ours(several: bool) -> None:
    seen = Seen("seen")
    own: Any = [seen] if several else seen
    if several and torch.__version__ < "2.13":
        pytest.skip("one pass only")
    with torch._inductor.config.patch(joint_custom_pre_pass=own):
        torch.compile(marked, backend=compile_by(trace_only))(make_input())
    (marks,) = seen.marks
    assert (marks["tanh"], marks["sigmoid"]) == ({MOVE}, {KEEP})


def trace_only(
    gm: fx.GraphModule, inputs: Sequence[Any], partitioner: OffloadPartitioner
) -> Callable[..., Any]:
    trace_with_inductor(gm, inputs, partitioner)
    return gm.forward


def test_the_pass_has_the_identity_of_all_that_runs() -> None:
    assert MarkPass().uuid() == MarkPass(None).uuid()
    assert MarkPass().uuid() != MarkPass(Seen("a")).uuid() != MarkPass(Seen("b")).uuid()
    assert MarkPass(Seen(None)).uuid() is None
    assert MarkPass(lambda graph: None).uuid() is None, "a function has no identity"


@pytest.mark.slow
def test_inductor_compiles_what_is_marked() -> None:
    compiled = torch.compile(marked, backend=compile_by(compile_with_inductor))
    torch.testing.assert_close(compiled(make_input()), marked(make_input()))
