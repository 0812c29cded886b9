"""The four ops as a compiler sees them: schemas, tags, fake kernels."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

from fxoffload.ops import NAMESPACE, OFFLOAD, OPS, PREFETCH, RELEASE, WAIT


def test_names() -> None:
    assert [op.name() for op in OPS] == [
        f"{NAMESPACE}::{name}" for name in ("offload", "release", "prefetch", "wait")
    ]


@pytest.mark.parametrize("op", OPS)
def test_tags(op: torch._ops.OpOverload) -> None:
    """Strides as planned; never inside a recorded CUDA graph."""
    assert torch.Tag.needs_exact_strides in op.tags
    assert torch.Tag.cudagraph_unsafe in op.tags


@pytest.mark.parametrize(
    ("op", "written"), [(OFFLOAD, []), (RELEASE, ["ticket"]), (PREFETCH, ["ticket"]), (WAIT, [])]
)
def test_what_is_written(op: torch._ops.OpOverload, written: list[str]) -> None:
    """A mutation keeps a compiler from dropping or reordering release and prefetch."""
    arguments = op._schema.arguments
    assert [a.name for a in arguments if a.alias_info and a.alias_info.is_write] == written
    assert op._schema.is_mutable == bool(written)


def test_nothing_returned_is_an_alias() -> None:
    assert all(result.alias_info is None for op in OPS for result in op._schema.returns)


def test_fake_kernels() -> None:
    with FakeTensorMode():
        x = torch.empty(4, 6, dtype=torch.bfloat16)
        ticket = OFFLOAD(x, "store", "x", "nvme", True, 0)
        assert (ticket.shape, ticket.dtype, ticket.device.type) == ((1,), torch.int64, "cpu")
        assert RELEASE(ticket, x) is None
        assert PREFETCH(ticket) is None
        y = WAIT(ticket, [4, 6], [1, 4], torch.bfloat16, torch.device("cpu"))
        assert (y.shape, y.stride(), y.dtype) == ((4, 6), (1, 4), torch.bfloat16)
