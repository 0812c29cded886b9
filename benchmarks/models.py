"""Builds the models of the benchmarks: classes of transformers with random weights.

Nothing is downloaded. Tokens are bytes; dropout is off; an MLP is four times as wide as its model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

VOCABULARY = 256


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model and of its batch; a T5 has half of `layers` on each side."""

    layers: int
    hidden: int
    heads: int
    batch: int
    length: int


class LossOnly(nn.Module):
    """A model of transformers as a function of its tokens that returns the loss alone."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """The loss with `tokens` (batch, length) as both input and labels."""
        return self.model(input_ids=tokens, labels=tokens).loss


def build_model(name: str, shape: Shape) -> LossOnly:
    """The model called `name` in BUILDERS, in training mode, with random weights."""
    return LossOnly(BUILDERS[name](shape)).train()


def make_tokens(shape: Shape) -> Tensor:
    """A batch of random bytes."""
    return torch.randint(VOCABULARY, (shape.batch, shape.length))


def _make_config(kind: type[Any], shape: Shape, **options: Any) -> Any:
    """A configuration by the names that all of them know, and `options` of its own."""
    return kind(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        attn_implementation="sdpa",
        decoder_start_token_id=0,
        **options,
    )


def _build_gpt(shape: Shape) -> PreTrainedModel:
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    sizes = {"n_positions": shape.length, "n_inner": 4 * shape.hidden}
    config = _make_config(GPT2Config, shape, use_cache=False, **sizes, **dropout, **tokens)
    return GPT2LMHeadModel(config)


def _build_bert(shape: Shape) -> PreTrainedModel:
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes = {"intermediate_size": 4 * shape.hidden, "max_position_embeddings": shape.length}
    return BertForMaskedLM(_make_config(BertConfig, shape, **sizes, **dropout))


def _build_t5(shape: Shape) -> PreTrainedModel:
    # Encoder and decoder have half of the layers each, and take the whole length.
    half = replace(shape, layers=shape.layers // 2)
    sizes = {"d_kv": shape.hidden // shape.heads, "d_ff": 4 * shape.hidden}
    layers = {"num_decoder_layers": half.layers, "dropout_rate": 0.0, "use_cache": False}
    return T5ForConditionalGeneration(_make_config(T5Config, half, **sizes, **layers))


BUILDERS: dict[str, Callable[[Shape], PreTrainedModel]] = {
    "gpt": _build_gpt,
    "bert": _build_bert,
    "t5": _build_t5,
}
