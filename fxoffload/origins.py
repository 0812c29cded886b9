"""Origins: where in the program a value of a graph comes from, for people who read a report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import fx

from fxoffload.graph import find_maker, get_op_name, get_tensor
from fxoffload.planner.plan import Origin
from fxoffload.torch_internals.tensor_sizes import is_strided

# What Dynamo calls the thing that was compiled, and how it writes a submodule.
_ROOT = re.compile(r"^L\[['\"]\w+['\"]\]\.?")
_ITEM = re.compile(r"\.?(?:_modules)?\[['\"]?(\w+)['\"]?\]")
# The lines of a Python stack trace that name a place.
_FRAME = re.compile(r'File "(.+)", line (\d+)')


def find_origin(node: fx.Node) -> Origin:
    """The origin of what `node` computes, from what torch.compile notes on nodes.

    Reads `meta["nn_module_stack"]` and `meta["stack_trace"]`; a part that is not known is "".
    """
    maker = find_maker(node)
    tensor = get_tensor(node)
    frames = _FRAME.findall(maker.meta.get("stack_trace") or "")
    return Origin(
        module=_find_module(maker.meta.get("nn_module_stack") or {}),
        source=":".join(frames[-1]) if frames else "",
        op="input" if maker.op == "placeholder" else get_op_name(maker) or maker.op,
        # Nested tensors have no sizes to ask for.
        shape=""
        if tensor is None or not is_strided(tensor)
        else " x ".join(map(str, tensor.shape)),
        dtype="" if tensor is None else str(tensor.dtype).removeprefix("torch."),
    )


def _find_module(stack: Mapping[str, Any]) -> str:
    """The path of the innermost module, without the name of what was compiled."""
    if not stack:
        return ""
    path, _ = list(stack.values())[-1]
    return _ITEM.sub(r".\1", _ROOT.sub("", str(path))).removeprefix(".")
