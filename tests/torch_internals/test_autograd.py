"""What fxoffload relies on in the state of autograd and in the memory of tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._functorch import config as functorch_config
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fxoffload.torch_internals import (
    describe_tracing,
    is_shared,
    keeps_graph,
    keeps_tangents,
    make_version_counter,
    outside_of_tracing,
)


def test_outside_of_tracing_tensors_are_real() -> None:
    with FakeTensorMode():
        with outside_of_tracing():
            assert torch.ones(3).sum().item() == 3
        assert isinstance(torch.ones(3), FakeTensor)


def test_whether_tangents_live_until_the_backward_has_returned() -> None:
    died: list[bool] = []

    @torch.library.custom_op("fxoffload_test::look", mutates_args=())
    def look(x: Tensor) -> Tensor:
        seen.append(bool(died))
        return x.clone()

    look.register_fake(torch.empty_like)
    seen: list[bool] = []

    class Looking(torch.autograd.Function):
        """The last op of its backward records whether the incoming gradient is still alive."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return torch.ops.fxoffload_test.look(2 * gradient)

    class Sum(torch.autograd.Function):
        """The gradient that its backward makes records when it dies."""

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
    """It works within the kernel of an op, too, below autograd."""
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
    """For a backward inside another one, the result is that of the inner one."""
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


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_what_tracing_depends_on_is_described() -> None:
    """Each mode has a description of its own, the same whenever it is on."""
    modes: list[Callable[[], AbstractContextManager[Any]]] = [
        nullcontext,
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu"),
        deterministic,
        lambda: functorch_config.patch(activation_memory_budget=0.5),
    ]

    def describe_all() -> list[str]:
        found: list[str] = []
        for mode in modes:
            with mode():
                found.append(describe_tracing())
        return found

    found = describe_all()
    assert len(set(found)) == len(modes)
    assert describe_all() == found
