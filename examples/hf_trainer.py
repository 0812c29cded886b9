"""Train a small Llama on the bytes of a text by Hugging Face's Trainer, with one callback.

python examples/hf_trainer.py --text LICENSE
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from trainer_options import parse_options
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from fxoffload.integrations.transformers import OffloadCallback

LENGTH = 128
SHAPE = LlamaConfig(
    vocab_size=256, hidden_size=64, intermediate_size=256, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=LENGTH,
)  # fmt: skip


def train(text: bytes, steps: int, modules: str = "model.layers", **options: Any) -> Trainer:
    """Train with the options of fxoffload; returns the Trainer with its model and log."""
    torch.manual_seed(0)
    rows = torch.tensor(list(text)).unfold(0, LENGTH, LENGTH)
    with tempfile.TemporaryDirectory() as output:
        trainer = Trainer(
            LlamaForCausalLM(SHAPE),
            TrainingArguments(
                output, max_steps=steps, per_device_train_batch_size=8, logging_steps=1,
                save_strategy="no", report_to="none", disable_tqdm=True,
                dataloader_pin_memory=torch.cuda.is_available(),
            ),
            train_dataset=[{"input_ids": row, "labels": row} for row in rows],
            callbacks=[OffloadCallback(modules, **options)],  # The changed line.
        )  # fmt: skip
        trainer.train()
    return trainer


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and let the Trainer print its log."""
    train(**parse_options(arguments, __doc__))


if __name__ == "__main__":
    main()
