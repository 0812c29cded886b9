"""Loops with accelerate and with adapters of peft, by their examples; docs/trainers.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate_loop
import peft_lora
import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch import nn
from trainer_runs import assert_equal, find_parameters, run, run_main
from transformers import LlamaForCausalLM, TrainingArguments

pytestmark = [
    pytest.mark.usefixtures("fresh_dynamo", "one_thread"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


@pytest.mark.parametrize("example", [accelerate_loop, peft_lora])
def test_loops_train_as_if_nothing_moved(
    example: Any, spill_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train: Callable[..., tuple[nn.Module, list[float]]] = example.train
    options: dict[str, Any] = {"directory": spill_directory}
    (unmoved, expected), unmoved_bytes = run(train, enabled=False, **options)
    (moved, losses), moved_bytes = run(train, **options)
    assert moved_bytes > 0 == unmoved_bytes
    assert losses == expected
    assert len(set(losses)) == len(losses)
    assert_equal(find_parameters(moved), find_parameters(unmoved))
    run_main(example.main, spill_directory)
    assert re.search(r"^loss [\d.]+\nmoved [1-9]\d* bytes$", capsys.readouterr().out, re.MULTILINE)


# --- docs ---------------------------------------------------------------------------------------

PAGE = Path(__file__).parent.parent / "docs" / "trainers.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).tanh()


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture
def names(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What the blocks of the page use and do not define, in a process group of one rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    model = LlamaForCausalLM(peft_lora.SHAPE)
    yield {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters()),
        "arguments": TrainingArguments(str(tmp_path), dataloader_pin_memory=False),
        "data": [{"input_ids": torch.arange(8), "labels": torch.arange(8)}],
        "stage_module": Stage(),
        "device": torch.device("cpu"),
        "loss_fn": nn.functional.mse_loss,
    }
    dist.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)  # Knows that process group.


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.filterwarnings("ignore::UserWarning:lightning.*")
def test_blocks_of_the_page_run(
    block: str,
    names: dict[str, Any],
    spill_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each compiles something, now or when a trainer begins."""
    monkeypatch.setenv("FXOFFLOAD_DIRECTORY", str(spill_directory))
    monkeypatch.chdir(spill_directory)
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: compiled.append(self))
    exec(block, names)
    assert compiled or "OffloadCallback" in names


def test_the_page_has_blocks() -> None:
    assert len(BLOCKS) == 9
