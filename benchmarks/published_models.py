"""Traces models of the sizes that others have published, and adds up what they save.

Sizes that are linear in the layers are traced with two and with three layers, and extrapolated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from benchmarks.simulated import CONFIG, checkpoint_layers, find_largest
from fxoffload.cli.byte_models import VOCABULARY
from fxoffload.cli.transformers_models import LossOnly
from fxoffload.cost import make_cost_model
from fxoffload.inspection.bounds import trace_steps
from fxoffload.inspection.catalogue import find_hardware
from fxoffload.planner.plan import SavedValue
from fxoffload.planner.step import Step

# The configuration with so many layers.
Configure = Callable[[int], PreTrainedConfig]


def build(config: PreTrainedConfig, batch: int, length: int) -> tuple[LossOnly, Tensor]:
    """The language model in bfloat16, and its tokens; neither has memory."""
    with torch.device("meta"):
        model = LossOnly(AutoModelForCausalLM.from_config(config)).train().bfloat16()
        return model, torch.randint(VOCABULARY, (batch, length))


def trace_two(
    configure: Configure, batch: int, length: int, *, checkpoints: bool = False
) -> list[Step]:
    """The steps with two and with three layers, in the program's own partition, on an H100."""
    cost = make_cost_model(find_hardware("H100", "Gen4").hardware)
    steps: list[Step] = []
    for layers in (2, 3):
        model, tokens = build(configure(layers), batch, length)
        if checkpoints:
            checkpoint_layers(model.model)
        steps.append(find_largest(trace_steps(model, (tokens,), {}, CONFIG, cost)))
    return steps


def extrapolate(steps: list[Step], measure: Callable[[Step], float], layers: int) -> float:
    """What is measured of `steps`, of two and of three layers, for so many layers."""
    two, three = map(measure, steps)
    return two + (layers - 2) * (three - two)


def add_up(step: Step, counts: Callable[[SavedValue], bool] = lambda value: True) -> int:
    """Bytes of the saved values that count; those of the caller never do."""
    return sum(value.nbytes for value in step.values if value.owned and counts(value))


def find_layer_input_bytes(step: Step) -> int:
    """Bytes that checkpoints of each layer save: the embeddings, and the sum of each layer."""

    def counts(value: SavedValue) -> bool:
        parents, _, module = value.origin.module.rpartition(".")
        is_sum = parents.endswith("layers") and value.origin.op == "add"
        return is_sum or module == "embed_tokens"

    return add_up(step, counts)


def find_product_bytes(step: Step) -> int:
    """Bytes of saved products, results of attention, and sums of the residual stream.

    A sum is saved in place of the product that is its last term, and has its bytes.
    """
    ops = ("mm", "add", "_scaled_dot_product_flash_attention_for_cpu")
    return add_up(step, lambda value: value.origin.op in ops)


def configure_gpt(
    hidden: int, heads: int, length: int, *, attention: str, dropout: float
) -> Configure:
    """GPT-2 of a width and a length."""
    chosen: dict[str, Any] = {"attn_implementation": attention, "use_cache": False}
    return lambda layers: GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=hidden,
        n_layer=layers,
        n_head=heads,
        n_positions=length,
        resid_pdrop=dropout,
        embd_pdrop=0.0,
        attn_pdrop=dropout,
        bos_token_id=0,
        eos_token_id=0,
        **chosen,
    )


def configure_qwen(hidden: int, inner: int, heads: int) -> Configure:
    """Qwen3 of a width, with eight heads for keys and values."""
    return _configure_grouped(Qwen3Config, hidden, inner, heads, vocab_size=151936, head_dim=128)


def configure_llama(hidden: int, inner: int, heads: int, vocabulary: int = VOCABULARY) -> Configure:
    """Llama 3 of a width, with eight heads for keys and values."""
    own = {"vocab_size": vocabulary, "max_position_embeddings": 2**17}
    return _configure_grouped(LlamaConfig, hidden, inner, heads, **own)


def _configure_grouped(
    kind: Callable[..., PreTrainedConfig], hidden: int, inner: int, heads: int, **own: int
) -> Configure:
    """A decoder with eight heads for keys and values; own: the fields of its kind."""
    return lambda layers: kind(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        use_cache=False,
        **own,
    )
