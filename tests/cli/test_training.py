"""The training of the command train: the same losses with and without fxoffload, and the peak."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from toys import HARDWARE

from fxoffload.cli.training import SETTLING_STEPS, Training, TrainingRecord
from fxoffload.errors import ConfigError

TEXT = b"the quick brown fox jumps over the lazy dog. " * 20
VALUE_BYTES = 16 * 64 * 64 * 4  # Of a value of the width of the model.


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Training:
    monkeypatch.setattr(torch, "compile", _compile_without_inductor(torch.compile))
    options: dict[str, Any] = {
        "memory_budget": "min",
        "min_bytes": 2**10,
        "ioengine": "memory",
        "hardware": HARDWARE,
        "compiler": "eager",
    }
    return Training("gpt", 2, 64, 1, 64, 16, 2, 0, "cpu", options)


def _compile_without_inductor(compile: Any) -> Any:
    return lambda model, **options: compile(model, **{"backend": "aot_eager", **options})


@pytest.mark.usefixtures("fresh_dynamo", "fresh_programs", "one_thread")
def test_both_ways_learn_the_same_and_one_moves(training: Training) -> None:
    shown: list[float] = []
    moved = training.run(TEXT, shown.append)
    plain = replace(training, options=None).run(TEXT, lambda loss: None)
    assert shown == moved.losses
    assert len(moved.losses) == SETTLING_STEPS + 2
    assert moved.losses == pytest.approx(plain.losses, abs=1e-5)
    assert moved.losses[-1] < moved.losses[0]
    assert len(moved.step_seconds) == 1
    assert plain.moved is None
    assert moved.moved is not None
    # Each of the two layers saves several values of this size.
    assert moved.moved["written_bytes"] > 4 * VALUE_BYTES
    assert moved.moved["read_bytes"] + moved.moved["forwarded_bytes"] > 4 * VALUE_BYTES
    assert plain.peak_bytes is not None
    assert plain.peak_bytes > 8 * VALUE_BYTES
    assert "2 layers x 64" in moved.description


def test_without_transformers_it_says_what_to_install(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "fxoffload.cli.byte_models", raising=False)
    monkeypatch.delattr("fxoffload.cli.byte_models", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r'pip install "fxoffload\[models\]"'):
        training.build_model()


def test_spread_of_steps() -> None:
    record = TrainingRecord("", [], [3.0, 1.0, 2.0], None, None, 0.0)
    assert record.find_spread() == (1.0, 2.0, 3.0)
    assert record.describe()["step_seconds"] == [3.0, 1.0, 2.0]
