"""What fxoffload relies on in torch's profiler."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.autograd import profiler

from fxoffload.torch_internals import is_profiling


def test_it_is_on_while_a_profiler_runs() -> None:
    assert not is_profiling()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        assert is_profiling()
    assert not is_profiling()
    with profiler.profile():
        assert is_profiling()
    assert not is_profiling()


def test_nvtx_ranges_turn_it_on_too() -> None:
    """By its source: entering emit_nvtx needs CUDA."""
    assert "_run_on_profiler_start()" in inspect.getsource(profiler.emit_nvtx.__enter__)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_nvtx_ranges_turn_it_on() -> None:
    with profiler.emit_nvtx():
        assert is_profiling()
    assert not is_profiling()
