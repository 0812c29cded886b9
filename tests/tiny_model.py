"""A model for the tests of benchmarks, small enough that Dynamo takes no time for it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fxoffload.cli.byte_models import VOCABULARY, Shape


class Result(NamedTuple):
    loss: Tensor


class Block(nn.Sequential):
    """Compiled in place, classes of torch.nn itself are skipped by Dynamo."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class TinyModel(nn.Module):
    """What the benchmarks ask of a model of transformers, which Dynamo takes ten times as long for.

    Its layers may run under torch.utils.checkpoint.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, shape.hidden)
        self.layers = nn.ModuleList(
            Block(
                nn.LayerNorm(shape.hidden),
                nn.Linear(shape.hidden, 4 * shape.hidden),
                nn.GELU(),
                nn.Linear(4 * shape.hidden, shape.hidden),
            )
            for _ in range(shape.layers)
        )
        self.head = nn.Linear(shape.hidden, VOCABULARY)
        self.options: dict[str, Any] | None = None

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any]) -> None:
        self.options = gradient_checkpointing_kwargs

    def forward(self, input_ids: Tensor, labels: Tensor, use_cache: bool) -> Result:
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = x + (layer(x) if self.options is None else checkpoint(layer, x, **self.options))
        return Result(functional.cross_entropy(self.head(x).flatten(0, 1), labels.flatten()))
