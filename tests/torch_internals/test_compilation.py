"""What fxoffload relies on where it compiles: torch's compilers with our partitioner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from compiling import run_compiled, trace_only, two_outputs
from functorch.compile import make_boxed_func
from torch import Tensor, fx
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from toys import WEIGHT, aten, make_input

from fxoffload.ops import PREFETCH
from fxoffload.torch_internals import (
    SET_OPTIONS,
    compilation,
    compile_with_aot,
    compile_with_inductor,
    find_cache_folder,
    list_inductor_modes,
    list_inductor_options,
    partitioning,
)


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


def test_trace_with_inductor_generates_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("code was generated")

    monkeypatch.setattr(torch._inductor.graph.GraphLowering, "run", refuse)
    recorder, _ = run_compiled(two_outputs, trace_only)
    ((_, _, count, _),) = recorder.calls
    assert count == 2
    assert torch._inductor.config.custom_partitioner_fn is None


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
    """For a cached graph the partitioner would not be called."""
    with torch._inductor.utils.fresh_cache():
        for compiler in (compile_with_inductor, trace_only):
            torch._dynamo.reset()
            recorder, results = run_compiled(two_outputs, compiler)
            results[1].backward()
            assert len(recorder.calls) == 1


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
