"""transform_graph and run_passes: the order of the passes, and verification after each."""

from __future__ import annotations

import dataclasses
import logging
from functools import partial

import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import NBYTES, OPTIONS, make_cost, names_of

from fxoffload.errors import BudgetError, GraphError
from fxoffload.graph import TrainingGraph
from fxoffload.ops import OFFLOAD, OPS, RELEASE
from fxoffload.passes import PassOptions, find_ops, make_plan, run_passes, transform_graph
from fxoffload.passes.hoisting import hoist_reductions, hoist_saved
from fxoffload.passes.insertion import insert_transfers
from fxoffload.passes.pipeline import count_ops


def get_code(graph: TrainingGraph) -> tuple[str, str]:
    return graph.forward.code, graph.backward.code


@pytest.mark.parametrize("fuses", [False, True])
def test_zoo_computes_the_same_bits(zoo_graph: TrainingGraph, fuses: bool) -> None:
    before = toys.copy_graph(zoo_graph)
    get_code(zoo_graph)  # compiled now, so that it must be compiled again
    found = transform_graph(zoo_graph, dataclasses.replace(OPTIONS, fuses=fuses))
    assert found.plan.offloads
    assert len(names_of(zoo_graph.forward.graph, OFFLOAD)) == len(found.plan.offloads)
    assert "fxoffload.offload" in zoo_graph.forward.code, "recompiled"
    assert "fxoffload.wait" in zoo_graph.backward.code
    toys.assert_same_step(before, zoo_graph)


def test_offloads_stand_behind_fused_loops() -> None:
    """A chain without calls is one loop."""
    places: list[list[str]] = []
    for fuses in (False, True):
        graph = toys.make_chain(2)
        transform_graph(graph, dataclasses.replace(OPTIONS, fuses=fuses))
        names = names_of(graph.forward.graph)
        places.append([name for name in names if not name.startswith("release")])
    assert places == [
        ["layer0", "offload_layer0", "layer1", "offload_layer1", "out"],
        ["layer0", "layer1", "out", "offload_layer0", "offload_layer1"],
    ]


def test_nothing_to_move_leaves_the_graphs_as_they_are(zoo_graph: TrainingGraph) -> None:
    before = get_code(zoo_graph)
    found = transform_graph(zoo_graph, dataclasses.replace(OPTIONS, min_bytes=2**20))
    assert found.model is None
    assert not found.plan.offloads
    assert get_code(zoo_graph) == before
    assert all(op not in names_of(zoo_graph.forward.graph) for op in OPS)


def test_same_graph_same_plan(zoo_graph: TrainingGraph) -> None:
    again = toys.copy_graph(zoo_graph)
    first, second = transform_graph(zoo_graph, OPTIONS), transform_graph(again, OPTIONS)
    assert first == second
    assert hash(first) == hash(second)
    assert get_code(zoo_graph) == get_code(again)


def test_budget_moves_no_more_than_it_must() -> None:
    """Four layers, alive together where the last of them is read: a budget of three keeps three."""
    graph = toys.make_chain(4)
    unmoved = transform_graph(
        toys.copy_graph(graph), dataclasses.replace(OPTIONS, budget_bytes=2**20)
    ).plan
    assert not unmoved.offloads
    peak = unmoved.peak_bytes
    plan = transform_graph(graph, dataclasses.replace(OPTIONS, budget_bytes=peak - NBYTES)).plan
    assert len(plan.offloads) == 1
    assert len(names_of(graph.forward.graph, OFFLOAD)) == 4, "a step of many graphs may need more"
    assert plan.peak_bytes <= peak - NBYTES
    assert plan.unmoved_peak_bytes == peak


def test_budget_that_no_plan_fits_leaves_the_graph_as_it_is() -> None:
    graph = toys.make_chain(4)
    before = get_code(graph)
    with pytest.raises(BudgetError):
        transform_graph(graph, dataclasses.replace(OPTIONS, budget_bytes=1))
    assert get_code(graph) == before


def test_recomputed_reader_of_a_moved_value_gets_the_restored_one() -> None:
    """A node that the backward computes again reads what the wait returns."""
    sketch = toys.Sketch()
    x = sketch.forward.input("x", toys.make_input())
    a = sketch.forward.call(toys.aten.sin.default, x, name="a")
    b = sketch.forward.call(toys.aten.cos.default, a, name="b")
    out = sketch.forward.call(toys.aten.exp.default, b)
    (saved,) = sketch.save(a)
    tangent = sketch.backward.input("tangents_1", toys.make_input())
    again = sketch.backward.call(toys.aten.cos.default, saved, name="b_again")
    gradient = sketch.backward.call(toys.aten.mul.Tensor, tangent, again)
    graph = sketch.finish([out], [gradient])
    before = toys.copy_graph(graph)
    transform_graph(graph, OPTIONS)
    assert str(again.args[0]) == "wait_a"
    toys.assert_same_step(before, graph)


def test_illegal_result_names_the_pass() -> None:
    graph = toys.make_chain(2)
    values = transform_graph(toys.copy_graph(graph), OPTIONS).plan.values

    def drop_release(graph: TrainingGraph) -> None:
        release, *_ = graph.forward.graph.find_nodes(op="call_function", target=RELEASE)
        graph.forward.graph.erase_node(release)

    passes = (partial(insert_transfers, values=values, store="store"), drop_release)
    with pytest.raises(GraphError, match=r"after drop_release: .* is released 0 times"):
        run_passes(graph, passes)


def test_each_pass_is_logged_with_what_it_added(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="fxoffload.passes.pipeline"):
        transform_graph(toys.make_chain(2), OPTIONS)
    (line,) = (r.getMessage() for r in caplog.records if r.name == "fxoffload.passes.pipeline")
    assert line.startswith("insert_transfers: ")
    assert "'fxoffload.offload.default': 2" in line


def test_the_model_is_that_of_the_ops() -> None:
    graph = toys.make_chain(3)
    model = transform_graph(graph, OPTIONS).model
    assert model is not None
    assert [value.name for value in model.values] == ["layer0", "layer1", "layer2"]
    events = [event for event, _ in (*model.forward.ops, *model.backward.ops)]
    assert events == list(find_ops(graph.forward.graph, graph.backward.graph))


def test_count_ops() -> None:
    assert count_ops(toys.make_chain(3)) == {
        "aten.sin.default": 3,
        "aten.cos.default": 1,
        "aten.mul.Tensor": 3,
    }


@settings(deadline=None, max_examples=60)
@given(
    toys.random_graphs(),
    st.one_of(st.none(), st.just("min"), st.integers(0, 1000)),
    st.floats(0, 5),
    st.integers(0, 300),
    st.booleans(),
)
def test_random_programs(
    graph: TrainingGraph, budget: object, seconds: float, host_bytes: int, fuses: bool
) -> None:
    before = toys.copy_graph(graph)
    options = PassOptions(
        cost=make_cost(seconds, 100), store="store", min_bytes=1, host_bytes=host_bytes,
        budget_bytes=budget, max_inflight_bytes=500, fuses=fuses,  # pyright: ignore
    )  # fmt: skip
    lowest = make_plan(graph, dataclasses.replace(options, budget_bytes="min")).peak_bytes
    if isinstance(budget, int) and budget < lowest:
        with pytest.raises(BudgetError):
            transform_graph(graph, options)
        return
    values = transform_graph(graph, options).plan.values
    assert len(names_of(graph.forward.graph, OFFLOAD)) == sum(v.has_ops for v in values)
    toys.assert_matched(graph)
    toys.assert_same_step(before, graph)


@pytest.mark.parametrize("fuses", [False, True])
@pytest.mark.parametrize("layout", toys.LAYOUTS)
def test_saved_value_of_another_layout_stays(layout: str, fuses: bool) -> None:
    sketch = toys.Sketch()
    x = sketch.forward.input("x", toys.make_input())
    odd = sketch.forward.graph.call_function(toys.aten.sin.default, (x,))
    odd.meta["val"] = toys.make_layout(layout)
    moved = sketch.forward.call(toys.aten.cos.default, x)
    out = sketch.forward.call(toys.aten.sin.default, moved)
    saved, cos = sketch.save(odd, moved)
    tangent = sketch.backward.input("tangents_1", toys.make_input())
    product = sketch.backward.graph.call_function(toys.aten.mm.default, (saved, tangent))
    product.meta["val"] = tangent.meta["val"]
    gradient = sketch.backward.call(toys.aten.mul.Tensor, product, cos)
    graph = sketch.finish([out], [gradient])
    hoist_saved(graph)
    hoist_reductions(graph)
    plan = transform_graph(graph, dataclasses.replace(OPTIONS, fuses=fuses)).plan
    assert list(plan.kept_bytes_by_reason()) == ["tensor subclass or layout that is not understood"]
    assert len(plan.offloads) == 1
