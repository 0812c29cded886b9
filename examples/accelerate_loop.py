"""Train a small GPT-2 on the bytes of a text in a loop of accelerate, with one more line.

accelerate launch examples/accelerate_loop.py --text LICENSE
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset
from trainer_options import parse_options
from transformers import GPT2Config, GPT2LMHeadModel

import fxoffload

LENGTH = 128
SHAPE = GPT2Config(
    vocab_size=256,
    n_positions=LENGTH,
    n_embd=64,
    n_layer=4,
    n_head=4,
    bos_token_id=None,
    eos_token_id=None,
    use_cache=False,  # Else torch compiles each layer by itself.
)


def train(text: bytes, steps: int, **options: Any) -> tuple[torch.nn.Module, list[float]]:
    """Train with the options of fxoffload; returns the model and the losses."""
    torch.manual_seed(0)
    rows = torch.tensor(list(text)).unfold(0, LENGTH, LENGTH)
    accelerator = Accelerator()
    model = GPT2LMHeadModel(SHAPE)
    fxoffload.compile_in_place(model, "transformer.h", **options)  # The added line.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(rows), batch_size=8, shuffle=True, drop_last=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    losses: list[float] = []
    for (batch,), _ in zip(loader, range(steps), strict=False):
        loss = model(input_ids=batch, labels=batch).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        accelerator.print(f"loss {loss.item():.4f}")
    return accelerator.unwrap_model(model), losses


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print what moved."""
    train(**parse_options(arguments, __doc__))
    print(f"moved {fxoffload.statistics().offloaded_bytes} bytes")


if __name__ == "__main__":
    main()
