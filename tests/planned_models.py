"""Models for tests of `fxoffload plan`: what `module:callable` may return."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 512


def build_chain() -> nn.Module:
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(4)]
    return nn.Sequential(*layers)


def with_function() -> tuple[nn.Module, Any]:
    return build_chain(), lambda batch, sequence: torch.zeros(batch, sequence, WIDTH)


def with_tensors() -> tuple[nn.Module, list[Tensor]]:
    return build_chain(), [torch.zeros(3, WIDTH)]


def of_tokens() -> nn.Module:
    return nn.Sequential(nn.Embedding(16, WIDTH), build_chain())


def wrong_result() -> int:
    return 3


def failing() -> nn.Module:
    raise RuntimeError("no weights\nhere")


def wrong_inputs() -> tuple[nn.Module, Any]:
    return build_chain(), lambda batch: torch.zeros(batch, WIDTH)
