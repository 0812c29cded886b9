"""Small language models over bytes: each has a loss, one graph, and sizes that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fxoffload.cli.byte_models import BUILDERS, Shape, build_model, check_shape, make_tokens
from fxoffload.errors import ConfigError

SHAPE = Shape(layers=2, hidden=64, heads=2, batch=2, length=16)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.usefixtures("fresh_dynamo")
def test_each_model_is_one_graph_with_a_loss(name: str) -> None:
    compiled = torch.compile(build_model(name, SHAPE), backend="eager", fullgraph=True)
    loss = compiled(make_tokens(SHAPE))
    assert loss.shape == ()
    loss.backward()
    assert loss.item() > 0
    assert all(parameter.grad is not None for parameter in compiled.parameters())


@pytest.mark.parametrize("name", BUILDERS)
def test_each_model_can_checkpoint_its_layers(name: str) -> None:
    """For the comparison with torch.utils.checkpoint."""
    model = build_model(name, SHAPE)
    inner: Any = model.model
    inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert sum(getattr(each, "gradient_checkpointing", False) for each in model.modules()) > 0
    model(make_tokens(SHAPE)).backward()


def test_sizes_that_no_model_has_are_refused() -> None:
    with pytest.raises(ConfigError, match="--hidden 64 is not a multiple of the 3 heads"):
        check_shape("gpt", Shape(2, 64, 3, 1, 8))
    with pytest.raises(ConfigError, match="--layers 3 is odd"):
        check_shape("t5", Shape(3, 64, 2, 1, 8))
    check_shape("gpt", Shape(3, 64, 2, 1, 8))
