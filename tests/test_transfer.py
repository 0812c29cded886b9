"""Layouts: what lies in a slot, and the tensor that is made of it."""

from __future__ import annotations

import pytest
import torch

from fxoffload.runtime.devices.buffers import span_tensor
from fxoffload.runtime.devices.transfer import Layout, Present, find_layout, restore_tensor


def test_layout_of_a_staged_tensor() -> None:
    x = torch.zeros(3, 8, dtype=torch.int16)[:, ::2]
    assert find_layout(x) == Layout(
        size=(3, 4), stride=(8, 2), dtype=torch.int16, device=torch.device("cpu"),
        span=2 * (2 * 8 + 3 * 2 + 1), staged=True,
    )  # fmt: skip


def test_layout_of_a_tensor_in_place() -> None:
    found = find_layout(torch.zeros(100), staged=False, phase=64, head=b"12", tail=b"3")
    assert (found.staged, found.phase, found.head, found.tail) == (False, 64, b"12", b"3")
    assert found.span == 400


@pytest.mark.parametrize(
    "x",
    [
        torch.arange(12.0).view(3, 4).t(),
        torch.arange(40).view(4, 10)[1:, 2:7],
        torch.arange(6).to(torch.bfloat16).expand(2, 6),
        torch.arange(24).view(2, 3, 4).permute(2, 0, 1) > 5,
        torch.tensor(7.5),
    ],
)
def test_a_tensor_is_restored_from_its_span(x: torch.Tensor) -> None:
    span = span_tensor(x).clone()
    y = restore_tensor(find_layout(x), span)
    assert torch.equal(y, x)
    assert (y.dtype, y.shape, y.stride()) == (x.dtype, x.shape, x.stride())
    assert y.data_ptr() == span.data_ptr(), "on the memory of the span"


def test_what_is_present_needs_nothing() -> None:
    x = torch.ones(3)
    arrival = Present(x)
    arrival.finish()
    arrival.close()
    assert arrival.y is x
