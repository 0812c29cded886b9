"""Fine-tune a small Llama by LoRA, with one line more than without fxoffload.

python examples/peft_lora.py --text LICENSE
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from trainer_options import parse_options
from transformers import LlamaConfig, LlamaForCausalLM

import fxoffload

LENGTH = 128
SHAPE = LlamaConfig(
    vocab_size=256, hidden_size=64, intermediate_size=256, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=LENGTH,
    use_cache=False,  # Else torch compiles each layer by itself.
)  # fmt: skip


def train(text: bytes, steps: int, **options: Any) -> tuple[torch.nn.Module, list[float]]:
    """Train the adapters with the options of fxoffload; returns the model and the losses."""
    torch.manual_seed(0)
    rows = torch.tensor(list(text)).unfold(0, LENGTH, LENGTH)
    adapters = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(LlamaForCausalLM(SHAPE), adapters)
    fxoffload.compile_in_place(model, "LlamaDecoderLayer", **options)  # The added line.
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses: list[float] = []
    for step in range(steps):
        batch = rows[8 * step :][:8]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        print(f"loss {loss.item():.4f}")
    return model, losses


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print what moved."""
    train(**parse_options(arguments, __doc__))
    print(f"moved {fxoffload.statistics().offloaded_bytes} bytes")


if __name__ == "__main__":
    main()
