"""Loops with accelerate and with adapters of peft, by their examples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate_loop
import peft_lora
import pytest
from torch import nn
from trainer_runs import assert_equal, find_parameters, one_thread, run

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
__all__ = ["one_thread"]


@pytest.mark.parametrize("train", [accelerate_loop.train, peft_lora.train])
def test_loops_train_as_if_nothing_moved(
    train: Callable[..., tuple[nn.Module, list[float]]], spill_directory: Path
) -> None:
    options: dict[str, Any] = {"directory": spill_directory}
    (unmoved, expected), unmoved_bytes = run(train, enabled=False, **options)
    (moved, losses), moved_bytes = run(train, **options)
    assert moved_bytes > 0 == unmoved_bytes
    assert losses == expected
    assert len(set(losses)) == len(losses)
    assert_equal(find_parameters(moved), find_parameters(unmoved))
