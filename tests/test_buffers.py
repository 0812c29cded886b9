"""Bytes of tensors of every layout, aligned memory, staging buffers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fxoffload.runtime.devices import buffers
from fxoffload.runtime.devices.buffers import (
    LEAST_HUGE_BYTES,
    STAGING_ALIGNMENT,
    StagingPool,
    byte_view,
    compact,
    copy_values,
    empty_at,
    find_span,
    same_layout,
    span_tensor,
)

DTYPES = [torch.bfloat16, torch.bool, torch.int64, torch.complex64, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_byte_view_is_the_memory_itself(dtype: torch.dtype) -> None:
    x = torch.zeros(7, dtype=dtype)[2:6]
    view = byte_view(x)
    assert len(view) == 4 * x.element_size()
    view[:] = bytes([1] * len(view))
    assert span_tensor(x).tolist() == [1] * len(view)
    assert view[0] == x.untyped_storage()[2 * x.element_size()]


def test_byte_view_keeps_the_memory() -> None:
    view = byte_view(torch.full((1000,), 7, dtype=torch.uint8))
    assert bytes(view) == b"\x07" * 1000


@pytest.mark.parametrize(
    ("x", "span"),
    [
        (torch.zeros(3, 4), 48),
        (torch.zeros(3, 4).t(), 48),
        (torch.zeros(2, 3, 4).permute(2, 0, 1), 96),
        (torch.zeros(3, 1, 4).as_strided((3, 1, 4), (4, 99, 1)), 48),
        (torch.zeros(3, 4)[:, :2], 40),
        (torch.zeros(8)[::2], 28),
        (torch.zeros(4).expand(3, 4), 16),
        (torch.zeros(5).as_strided((3, 3), (1, 1)), 20),
        (torch.zeros(0, 4), 0),
        (torch.zeros(()), 4),
    ],
)
def test_span(x: torch.Tensor, span: int) -> None:
    assert find_span(x) == span


@pytest.mark.parametrize(
    ("x", "same"),
    [
        (torch.arange(12.0).view(3, 4).t(), True),
        (torch.arange(12.0).view(3, 4)[:, ::2], False),
        (torch.arange(4.0).expand(3, 4), True),
        (torch.arange(8.0)[::2].expand(5, 4), True),
        (torch.arange(80.0)[::20].expand(5, 4), False),
        (torch.arange(10.0).as_strided((2, 3), (3, 3)), True),
        (torch.arange(2000.0).as_strided((3, 2), (500, 500)), True),
    ],
)
def test_compact_keeps_the_values(x: torch.Tensor, same: bool) -> None:
    out = compact(x)
    assert (out is x) is same
    assert torch.equal(out.expand(x.shape), x)
    assert same or find_span(out) == out.numel() * 4


def test_copy_values_to_an_expanded_tensor() -> None:
    y = torch.empty_strided((3, 4), (0, 1))
    copy_values(y, torch.arange(4.0).expand(3, 4))
    assert y.tolist() == [[0, 1, 2, 3]] * 3


def test_same_layout_ignores_strides_of_length_one() -> None:
    assert same_layout([3, 1, 4], [4, 4, 1], [3, 1, 4], [4, 77, 1])
    assert not same_layout([3, 2], [2, 1], [3, 2], [1, 3])
    assert not same_layout([3, 2], [2, 1], [2, 3], [2, 1])
    assert not same_layout([3], [1], [3, 1], [1, 1])


@pytest.mark.parametrize("alignment", [1, 512, 4096])
@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_at_has_the_address_and_starts_its_storage(
    alignment: int, dtype: torch.dtype
) -> None:
    for phase in {0, 64 % alignment, (alignment - 64) % alignment}:
        span = 35 * dtype.itemsize
        y, view = empty_at((5, 7), (1, 5), dtype, span=span, phase=phase, alignment=alignment)
        assert y.data_ptr() % alignment == phase
        assert (y.shape, y.stride(), y.dtype) == ((5, 7), (1, 5), dtype)
        assert y.storage_offset() == 0
        assert y.untyped_storage().nbytes() >= find_span(y)
        y.fill_(1)
        assert torch.equal(y.as_strided((35,), (1,), 0), torch.ones(35, dtype=dtype))
        assert view == byte_view(y)
        assert len(view) == span
        view[:] = bytes(span)
        assert not y.any()


def find_flags(address: int) -> set[str]:
    """What Linux notes of the mapping that `address` is in (VmFlags of /proc/self/smaps)."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    raise AssertionError(f"no mapping holds {address:#x}")


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without huge pages"
)
def test_large_memory_asks_for_huge_pages() -> None:
    y = empty_bytes(LEAST_HUGE_BYTES)
    assert "hg" in find_flags(y.data_ptr() + LEAST_HUGE_BYTES // 2)


def test_smaller_memory_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flags of its mapping do not tell: a heap keeps those of a larger block before it."""
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(buffers, "ask_for_huge_pages", asked.append)
    empty_bytes(LEAST_HUGE_BYTES - 4)
    assert not asked
    empty_bytes(LEAST_HUGE_BYTES)
    assert len(asked) == 1


def empty_bytes(span: int) -> torch.Tensor:
    y, _ = empty_at(
        (span // 4,), (1,), torch.float32, span=span, phase=64, alignment=STAGING_ALIGNMENT
    )
    return y


def test_staging_buffers_are_aligned_and_reused() -> None:
    pool = StagingPool(max_free_bytes=3 * STAGING_ALIGNMENT)
    buffer = pool.take(1)
    assert buffer.tensor.data_ptr() % STAGING_ALIGNMENT == 0
    assert len(buffer.view) == buffer.tensor.numel() == STAGING_ALIGNMENT
    buffer.view[5] = 9
    assert buffer.tensor[5] == 9
    pool.give(buffer)
    assert pool.free_bytes == STAGING_ALIGNMENT
    assert pool.take(STAGING_ALIGNMENT) is buffer
    larger = pool.take(STAGING_ALIGNMENT + 1)
    assert larger.tensor.numel() == 2 * STAGING_ALIGNMENT
    for returned in (larger, buffer, pool.take(1)):
        pool.give(returned)
    assert pool.free_bytes == 3 * STAGING_ALIGNMENT


def test_flags_of_a_tensor_become_bytes() -> None:
    x = torch.tensor([1 + 2j, 3 - 4j])
    assert buffers.materialise(x) is x
    for lazy in (x.conj(), x.conj().imag):
        bytes_of = buffers.materialise(lazy)
        assert not bytes_of.is_conj()
        assert not bytes_of.is_neg()
        assert torch.equal(bytes_of, lazy)


@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 1), (1, 1)])
def test_a_span_has_the_bytes_of_the_tensor(shape: tuple[int, ...]) -> None:
    """Also where the stride of a dimension of length 1 is odd."""
    x = torch.arange(64, dtype=torch.int32)[3 : 3 + torch.Size(shape).numel()].view(shape)
    odd = x.as_strided(
        shape, [7 if n == 1 else s for n, s in zip(shape, x.stride(), strict=True)], 3
    )
    for tensor in (x, odd):
        span = span_tensor(tensor)
        assert (span.dtype, span.dim(), len(span)) == (torch.uint8, 1, find_span(tensor))
        assert not len(span) or span.data_ptr() == tensor.data_ptr()


def test_all_bytes_of_a_staging_buffer_are_its_tensor() -> None:
    buffer = buffers.StagingPool().take(4096)
    assert buffer.take_bytes(4096) is buffer.tensor
    assert len(buffer.take_bytes(100)) == 100
