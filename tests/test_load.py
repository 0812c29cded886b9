"""The load beside which transfers are measured: it computes until the end, and no longer."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from fxoffload.runtime.measurement.load import keep_computing

NAME = "fxoffload-load"


def count_threads() -> int:
    return sum(thread.name == NAME for thread in threading.enumerate())


def test_it_computes_meanwhile_and_stops_at_the_end() -> None:
    with keep_computing():
        before = time.process_time()
        time.sleep(0.2)
        assert count_threads() == 1
        assert time.process_time() - before > 0.05
    assert count_threads() == 0


def test_it_has_computed_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[torch.Tensor] = []

    def multiply(*_: torch.Tensor, out: torch.Tensor) -> None:
        time.sleep(0.05)
        products.append(out)

    monkeypatch.setattr(torch, "mm", multiply)
    with keep_computing(matrix_size=8):
        assert products


def test_it_stops_on_an_error() -> None:
    with pytest.raises(ValueError, match="probe"), keep_computing():
        raise ValueError("probe")
    assert count_threads() == 0
