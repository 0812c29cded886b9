"""Blocks that are compiled one by one, for the tests of programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Saves its input and three results; the first block saves no input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + nn.functional.silu(self.gate(x)) * self.up(x)


def compile_blocks(count: int, width: int, directory: Path, **options: Any) -> list[Block]:
    """So many blocks, each compiled by itself."""
    torch.manual_seed(0)
    blocks = [Block(width) for _ in range(count)]
    chosen = {"directory": directory, "compiler": "eager", "min_bytes": 2**20, **options}
    for block in blocks:
        block.compile(backend="fxoffload", options=chosen)
    return blocks
