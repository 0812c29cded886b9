"""Models of transformers with random weights, from a configuration; no weights are loaded."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fxoffload.errors import ConfigError
from fxoffload.hints import find_hint


class LossOnly(nn.Module):
    """A language model as a function of its tokens that returns the loss alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        if getattr(model, "loss_type", "") is None:
            # What transformers falls back to at each call, with a warning that breaks the graph.
            self.model.loss_type = "ForCausalLM"

    def forward(self, tokens: Tensor) -> Tensor:
        """The loss with `tokens` (batch, sequence) as both input and labels."""
        return self.model(input_ids=tokens, labels=tokens, use_cache=False).loss


def build_model(name: str, sequence: int) -> tuple[nn.Module, str]:
    """The model with the configuration `name` on the present device, and what it is in words.

    sequence: checked against the positions of the model. Raises ConfigError without transformers,
    for a configuration that is not found, and for one that is of no language model.
    """
    try:
        import transformers
    except ImportError:
        raise ConfigError(
            f'model={name!r} needs the package transformers; pip install "fxoffload[models]", or '
            "name module:callable"
        ) from None
    config, origin = find_config(name)
    length = getattr(config, "max_position_embeddings", None)
    if isinstance(length, int) and sequence > length:
        raise ConfigError(f"sequence={sequence} exceeds the {length} positions of {name!r}")
    kind = type(config)
    if config.is_encoder_decoder and kind in transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        builder = transformers.AutoModelForSeq2SeqLM
        if getattr(config, "decoder_start_token_id", None) is None:
            config.decoder_start_token_id = 0
    elif kind in transformers.MODEL_FOR_MASKED_LM_MAPPING:
        builder = transformers.AutoModelForMaskedLM
    elif kind in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        builder = transformers.AutoModelForCausalLM
    else:
        raise ConfigError(f"{name!r} is no language model; name module:callable that builds it")
    model = builder.from_config(config)
    return LossOnly(model), f"{type(model).__name__} from {origin}"


def find_config(name: str) -> tuple[Any, str]:
    """The configuration of transformers that `name` stands for, and where it is from.

    A model type needs no network: its class has defaults. Raises ConfigError if none is found.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    path = Path(name)
    if not path.exists() and name in CONFIG_MAPPING:
        return CONFIG_MAPPING[name](), f"the defaults of the model type {name!r}"
    try:
        # The hub is asked only for "org/model": a misspelt model type fails at once.
        with _silence("huggingface_hub"):  # It warns of each retry without a network.
            return AutoConfig.from_pretrained(name, local_files_only="/" not in name), name
    except Exception as error:  # Of the file, of the cache or of the network: of many kinds.
        reason = str(error).strip().splitlines()
        types = list(CONFIG_MAPPING.keys())
        raise ConfigError(
            f"model={name!r}: no such model type, and no configuration is found "
            f"({type(error).__name__}: {reason[0] if reason else 'no reason given'}); "
            f"{find_hint(name, types)}name a model type such as 'gpt2', a directory with "
            "config.json, or module:callable"
        ) from None


@contextmanager
def _silence(name: str) -> Generator[None]:
    """Let the logger `name`, and those below it, say nothing."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
