"""Small models over bytes: classes of transformers with random weights.

The command `train` and the benchmarks use them. Nothing is downloaded. Tokens are bytes, the pixels
of a ViT too; dropout is off; an MLP is four times as wide as its model, that of a Llama three and a
half times, as in the 8B of Llama 3. Importing this needs the package transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    T5Config,
    ViTConfig,
    ViTForImageClassification,
)

from fxoffload.cli.transformers_models import LossOnly
from fxoffload.errors import ConfigError

VOCABULARY = 256


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model and of its batch; a T5 has half of `layers` on each side.

    vocabulary: tokens that the model knows; those of a batch are bytes.
    """

    layers: int
    hidden: int
    heads: int
    batch: int
    length: int
    vocabulary: int = VOCABULARY


def check_shape(name: str, shape: Shape) -> None:
    """Raise ConfigError where there is no model called `name` of these sizes."""
    smallest = min(shape.layers, shape.hidden, shape.batch, shape.length)
    if smallest < 1:
        raise ConfigError(
            f"{smallest} layers, features, samples or tokens are none; pass at least 1"
        )
    if shape.hidden % shape.heads:
        raise ConfigError(f"--hidden {shape.hidden} is not a multiple of the {shape.heads} heads")
    if name == "t5" and shape.layers % 2:
        raise ConfigError(f"--layers {shape.layers} is odd; a T5 has half of them on each side")


def build_model(name: str, shape: Shape) -> LossOnly:
    """The model called `name` in BUILDERS, in training mode, with random weights."""
    return LossOnly(BUILDERS[name](shape)).train()


def make_tokens(shape: Shape) -> Tensor:
    """A batch of random bytes."""
    return torch.randint(VOCABULARY, (shape.batch, shape.length))


def _build_gpt(shape: Shape) -> PreTrainedModel:
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    sizes = {"n_positions": shape.length, "n_inner": 4 * shape.hidden}
    config = _make_config(GPT2Config, shape, shape.layers, **sizes, **dropout, **tokens)
    return AutoModelForCausalLM.from_config(config)


def _build_bert(shape: Shape) -> PreTrainedModel:
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes = {"intermediate_size": 4 * shape.hidden, "max_position_embeddings": shape.length}
    config = _make_config(BertConfig, shape, shape.layers, **sizes, **dropout)
    return AutoModelForMaskedLM.from_config(config)


def _build_t5(shape: Shape) -> PreTrainedModel:
    # Encoder and decoder have half of the layers each, the encoder the odd one, and take the whole
    # length.
    half = shape.layers // 2
    sizes = {"d_kv": shape.hidden // shape.heads, "d_ff": 4 * shape.hidden}
    layers = {"num_decoder_layers": half, "dropout_rate": 0.0}
    config = _make_config(T5Config, shape, shape.layers - half, **layers, **sizes)
    return AutoModelForSeq2SeqLM.from_config(config)


def _build_llama(shape: Shape) -> PreTrainedModel:
    # Four heads share a key, and a value.
    sizes = {
        "num_key_value_heads": max(1, shape.heads // 4),
        "intermediate_size": 7 * shape.hidden // 2,
        "max_position_embeddings": shape.length,
    }
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    config = _make_config(LlamaConfig, shape, shape.layers, **sizes, **tokens)
    return AutoModelForCausalLM.from_config(config)


def _make_config(kind: type[Any], shape: Shape, layers: int, **options: Any) -> Any:
    """A configuration by the names that all of them know, and `options` of its own."""
    return kind(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        attn_implementation="sdpa",
        decoder_start_token_id=0,
        use_cache=False,
        **options,
    )


class _ByteViT(nn.Module):
    """A ViT whose image has a pixel for each byte, and whose label is the first one."""

    loss_type = "ForImageClassification"

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        image = {"image_size": (1, shape.length), "patch_size": 1, "num_channels": 1}
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        sizes = {"intermediate_size": 4 * shape.hidden, "num_labels": shape.vocabulary}
        config = _make_config(ViTConfig, shape, shape.layers, **image, **dropout, **sizes)
        self.vit = ViTForImageClassification(config)

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        """The loss of a batch of images of one row."""
        pixels = (input_ids[:, None, None] / VOCABULARY).to(self.vit.dtype)
        return self.vit(pixel_values=pixels, labels=input_ids[:, 0])

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Let each layer recompute what it would save, as the other models can, too."""
        self.vit.gradient_checkpointing_enable(**options)


BUILDERS: dict[str, Callable[[Shape], nn.Module]] = {
    "gpt": _build_gpt,
    "bert": _build_bert,
    "t5": _build_t5,
    "llama": _build_llama,
    "vit": _ByteViT,
}
