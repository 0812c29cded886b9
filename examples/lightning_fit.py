"""Train a small GPT on the bytes of a text by Lightning's Trainer, with one callback.

python examples/lightning_fit.py --text LICENSE
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from gpt import GPT, GPTShape
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from trainer_options import parse_options

from fxoffload.integrations.lightning import OffloadCallback

SHAPE = GPTShape(layers=4, width=64, heads=4, length=128)


class ByteModel(LightningModule):
    """A GPT that learns the next byte."""

    def __init__(self) -> None:
        super().__init__()
        self.model = GPT(SHAPE)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """The loss of rows that are one byte longer than the model's sequences."""
        return self.model(batch[0][:, :-1], batch[0][:, 1:])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Of all parameters."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def train(text: bytes, steps: int, **options: Any) -> tuple[ByteModel, Trainer]:
    """Train with the options of fxoffload; returns the model, and the Trainer with its metrics."""
    torch.manual_seed(0)
    rows = torch.tensor(list(text)).unfold(0, SHAPE.length + 1, SHAPE.length)
    model = ByteModel()
    trainer = Trainer(
        max_steps=steps, logger=False, enable_checkpointing=False, enable_model_summary=False,
        callbacks=[OffloadCallback("model.blocks", **options)],  # The changed line.
    )  # fmt: skip
    trainer.fit(model, DataLoader(TensorDataset(rows), batch_size=8, shuffle=True, drop_last=True))
    return model, trainer


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print the last metrics."""
    _, trainer = train(**parse_options(arguments, __doc__))
    print(trainer.callback_metrics)


if __name__ == "__main__":
    main()
