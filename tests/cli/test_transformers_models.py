"""Models of transformers by model type, by file, and what is none; no network is used."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, GPT2Config, T5Config, ViTConfig

from fxoffload import ConfigError
from fxoffload.cli.transformers_models import build_model, find_config

SMALL = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}


def save(config: GPT2Config | BertConfig | T5Config | ViTConfig, path: Path) -> str:
    config.save_pretrained(path)
    return str(path)


def test_a_model_type_has_the_defaults_of_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_: 1 / 0)
    config, origin = find_config("gpt2")
    assert (config.n_layer, config.n_embd) == (12, 768)
    assert "gpt2" in origin


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (GPT2Config(**SMALL), "GPT2LMHeadModel"),
        (BertConfig(**SMALL, intermediate_size=64), "BertForMaskedLM"),
        (T5Config(**SMALL, d_ff=64), "T5ForConditionalGeneration"),
    ],
)
def test_each_kind_of_language_model_has_a_loss(
    tmp_path: Path, config: GPT2Config | BertConfig | T5Config, kind: str
) -> None:
    model, description = build_model(save(config, tmp_path), 8)
    assert kind in description
    loss = model(torch.zeros(2, 8, dtype=torch.int64))
    assert loss.shape == ()
    assert loss.requires_grad


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_model_type_compiles_to_one_graph(tmp_path: Path) -> None:
    """A warning of transformers about its loss would break the graph."""
    model, _ = build_model(save(GPT2Config(**SMALL), tmp_path), 8)
    compiled = torch.compile(model, backend="eager", fullgraph=True)  # Raises at a graph break.
    assert compiled(torch.zeros(2, 8, dtype=torch.int64)).shape == ()


def test_retries_without_a_network_are_not_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying")
        raise OSError("no network")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", fail)
    with pytest.raises(ConfigError, match="no network"):
        find_config("no/such")
    assert caplog.records == []
    assert logging.getLogger("huggingface_hub").level < logging.CRITICAL


def test_what_is_no_language_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no language model; name module:callable"):
        build_model(save(ViTConfig(), tmp_path), 8)


def test_a_sequence_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sequence=4096 exceeds the 1024 positions"):
        build_model(save(GPT2Config(**SMALL), tmp_path), 4096)


def test_an_unknown_name_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *, local_files_only: bool) -> None:
        assert local_files_only == ("/" not in name)
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refuse)
    with pytest.raises(ConfigError, match=r"couldn't connect.*did you mean 'gpt2'"):
        build_model("gpt22", 8)
    with pytest.raises(ConfigError, match="name a model type"):
        build_model("org/model", 8)
