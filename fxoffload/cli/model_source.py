"""A model by the name of a callable, or of a configuration of transformers.

module:callable    called without arguments, in the directory of the command. It returns
                   - the module: it is called with int64 tokens (batch, sequence);
                   - (module, inputs): a sequence of the tensors that it is called with;
                   - (module, make_inputs): make_inputs(batch, sequence) returns such tensors.
a model type       "gpt2", "bert", "llama", "t5": the defaults of its class, without a network
a path             a directory with a config.json of transformers, or such a file
another name       "org/model": from the local cache of transformers, else from its hub
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxoffload.errors import ConfigError

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, slots=True)
class Source:
    """A model to plan. make_inputs(batch) returns what it is called with.

    fixed_batch: whether the callable gave tensors, so that no other batch can be made.
    """

    model: nn.Module
    make_inputs: Callable[[int], Sequence[Any]]
    description: str
    fixed_batch: bool


def load_model(name: str, *, sequence: int, dtype: str, device: str) -> Source:
    """Build the model that `name` stands for on `device`, in training mode, in `dtype`.

    device: "meta" allocates nothing. Raises ConfigError for a name, a dtype or a result of the
    callable that cannot be used.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r} is unknown; valid: {list(DTYPES)}")
    with torch.device(device):
        if ":" in name:
            model, given = _split_result(name, _call(name))
            description = name
        else:
            from fxoffload.cli.transformers_models import build_model

            model, description = build_model(name, sequence)
            given = None
    model = model.to(device=device, dtype=DTYPES[dtype]).train()

    def make_inputs(batch: int) -> Sequence[Any]:
        with torch.device(device):
            made = _make_inputs(name, given, batch, sequence)
            return [_convert(value, device, DTYPES[dtype]) for value in made]

    count = sum(parameter.numel() for parameter in model.parameters())
    described = f"{description}: {count / 1e6:.1f} million parameters, {dtype}"
    return Source(model, make_inputs, described, given is not None and not callable(given))


def _call(name: str) -> Any:
    """The result of the callable `module:callable`."""
    module_name, _, path = name.partition(":")
    directory = os.getcwd()
    if directory not in sys.path:
        sys.path.insert(0, directory)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(
            f"model={name!r}: importing {module_name!r} fails with {_describe(error)}; name a "
            "module of this directory or an installed one"
        ) from None
    for part in path.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ConfigError(
            f"model={name!r}: the module has no callable {path!r}; name a function without "
            "arguments that returns the model"
        )
    try:
        return found()
    except Exception as error:
        raise ConfigError(
            f"model={name!r}: calling it without arguments fails with {_describe(error)}"
        ) from None


def _split_result(name: str, result: Any) -> tuple[nn.Module, Any]:
    """The module, and the inputs or the function that makes them; None if neither was given."""
    model, given = result, None
    if isinstance(result, tuple) and len(result) == 2:
        model, given = result
    is_inputs = given is None or callable(given) or isinstance(given, list | tuple)
    if not isinstance(model, nn.Module) or not is_inputs:
        raise ConfigError(
            f"model={name!r} returned {type(result).__name__}; return the module, or a tuple of it "
            "and its inputs (a sequence of tensors) or a function make_inputs(batch, sequence)"
        )
    return model, given


def _make_inputs(name: str, given: Any, batch: int, sequence: int) -> Sequence[Any]:
    if given is None:
        return [torch.zeros(batch, sequence, dtype=torch.int64)]
    if not callable(given):
        return given
    try:
        made: Any = given(batch, sequence)
    except Exception as error:
        raise ConfigError(
            f"model={name!r}: make_inputs({batch}, {sequence}) fails with {_describe(error)}"
        ) from None
    return [made] if isinstance(made, Tensor) else made


def check_forward(source: Source, name: str, batch: int) -> None:
    """Raise ConfigError if the forward of the model `name` fails by itself, without a compiler."""
    inputs = source.make_inputs(batch)
    try:
        with torch.no_grad():
            source.model(*inputs)
    except Exception as error:
        raise ConfigError(
            f"model={name!r}: its forward fails with {_describe(error)}; check the shapes and "
            "types of its inputs"
        ) from None


def _convert(value: Any, device: str, dtype: torch.dtype) -> Any:
    """A tensor on `device`, of `dtype` if it has floating-point numbers; others as they are."""
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
