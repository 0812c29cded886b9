"""The models of the benchmarks: classes of transformers, built from a configuration.

Nothing is downloaded. Tokens are bytes; dropout is off; an MLP is four times as wide as its model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
# Keywords that the base class of configurations takes, which their signatures do not show.
_COMMON: dict[str, Any] = {"attn_implementation": "sdpa", "decoder_start_token_id": 0}


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


def build_gpt(shape: Shape) -> PreTrainedModel:
    """GPT-2 with its language model head."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=shape.length,
        n_embd=shape.hidden,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_inner=4 * shape.hidden,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
        **_COMMON,
    )
    return GPT2LMHeadModel(config)


def build_bert(shape: Shape) -> PreTrainedModel:
    """BERT with its masked language model head."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.hidden,
        max_position_embeddings=shape.length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **_COMMON,
    )
    return BertForMaskedLM(config)


def build_t5(shape: Shape) -> PreTrainedModel:
    """T5: encoder and decoder, each with half of the layers and the whole length."""
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=shape.hidden,
        d_kv=shape.hidden // shape.heads,
        d_ff=4 * shape.hidden,
        num_layers=shape.layers // 2,
        num_decoder_layers=shape.layers // 2,
        num_heads=shape.heads,
        dropout_rate=0.0,
        use_cache=False,
        **_COMMON,
    )
    return T5ForConditionalGeneration(config)


BUILDERS: dict[str, Callable[[Shape], PreTrainedModel]] = {
    "gpt": build_gpt,
    "bert": build_bert,
    "t5": build_t5,
}
