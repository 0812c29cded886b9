"""Models by name: what a callable may return, and what is refused."""

from __future__ import annotations

import pytest
import torch
from planned_models import WIDTH

from fxoffload import ConfigError
from fxoffload.cli.model_source import Source, load_model


def load(name: str, **options: str) -> Source:
    chosen = {"dtype": "float32", "device": "meta", **options}
    return load_model(f"planned_models:{name}", sequence=8, **chosen)


def test_a_module_alone_gets_tokens() -> None:
    source = load("of_tokens")
    (tokens,) = source.make_inputs(3)
    assert (tuple(tokens.shape), tokens.dtype) == ((3, 8), torch.int64)
    assert not source.fixed_batch


def test_a_function_makes_inputs_of_any_batch() -> None:
    source = load("with_function", dtype="bfloat16")
    (x,) = source.make_inputs(5)
    assert (tuple(x.shape), x.dtype, x.device.type) == ((5, 8, WIDTH), torch.bfloat16, "meta")
    assert {each.dtype for each in source.model.parameters()} == {torch.bfloat16}
    assert not source.fixed_batch
    assert source.model.training


def test_tensors_have_a_fixed_batch() -> None:
    source = load("with_tensors")
    assert source.fixed_batch
    assert source.make_inputs(7)[0].shape[0] == 3


def test_meta_allocates_nothing_and_a_cpu_does() -> None:
    assert {each.device.type for each in load("build_chain").model.parameters()} == {"meta"}
    real = load("build_chain", device="cpu").model
    assert {each.device.type for each in real.parameters()} == {"cpu"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("planned_models:missing", "no callable 'missing'"),
        ("planned_models:WIDTH", "no callable 'WIDTH'"),
        ("no_such_module:build", "importing 'no_such_module' fails with ModuleNotFoundError"),
        ("planned_models:wrong_result", "returned int"),
        ("planned_models:failing", "RuntimeError: no weights"),
    ],
)
def test_what_cannot_be_used(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_model(name, sequence=8, dtype="float32", device="meta")


def test_wrong_functions_and_dtypes() -> None:
    with pytest.raises(ConfigError, match=r"make_inputs\(2, 8\) fails with TypeError"):
        load("wrong_inputs").make_inputs(2)
    with pytest.raises(ConfigError, match="dtype='int8'"):
        load("build_chain", dtype="int8")
