"""Runs of trainers on a real text, and what they must have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from waiting import wait_for_writes

import fxoffload

TEXT = (Path(__file__).parent.parent / "LICENSE").read_bytes()
STEPS = 3


def run_main(main: Callable[[list[str]], None], directory: Path) -> None:
    """As on the command line, in one step."""
    main(["--steps", "1", "--compiler", "eager", "--directory", str(directory)])


def find_parameters(model: nn.Module) -> list[Tensor]:
    """Copies, in the order of the model."""
    return [parameter.detach().clone() for parameter in model.parameters()]


def run(train: Callable[..., Any], **options: Any) -> tuple[Any, int]:
    """What `train` returns, and the bytes that moved; nothing is left in the store."""
    torch._dynamo.reset()
    fxoffload.reset_statistics()
    trained = train(
        TEXT, **{"steps": STEPS, "compiler": "eager", "memory_budget": "min", **options}
    )
    wait_for_writes()
    done = fxoffload.statistics()
    assert done.live_bytes == done.inflight_bytes == 0
    return trained, done.offloaded_bytes


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    """Bit by bit."""
    assert len(found) == len(expected) > 0
    assert all(map(torch.equal, found, expected))
