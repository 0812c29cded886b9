"""What fxoffload relies on in CUDA's allocator."""

from __future__ import annotations

import typing

import pytest
import torch

from fxoffload.torch_internals import memory_observer, watch_out_of_memory

NAME = "_cuda_attach_out_of_memory_observer"


def test_the_observer_gets_four_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    attached: list[memory_observer.Observer] = []
    monkeypatch.setattr(torch._C, NAME, attached.append, raising=False)
    seen: list[tuple[int, ...]] = []
    assert watch_out_of_memory(lambda *numbers: seen.append(numbers))
    attached[0](1, 2, 3, 4)
    assert seen == [(1, 2, 3, 4)]
    (numbers, _) = typing.get_args(memory_observer.Observer)
    assert numbers == [int] * 4


def test_a_build_without_cuda_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, NAME, raising=False)
    assert not watch_out_of_memory(lambda *_: None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_calls_it() -> None:
    seen: list[tuple[int, ...]] = []
    assert watch_out_of_memory(lambda *numbers: seen.append(numbers))
    free, total = torch.cuda.mem_get_info()
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(2 * total, dtype=torch.uint8, device="cuda")
    ((device, asked_bytes, total_bytes, free_bytes),) = seen
    assert device == torch.cuda.current_device()
    assert asked_bytes >= 2 * total
    assert 0 < free_bytes <= total_bytes <= total
    assert free_bytes <= free + 2**26
