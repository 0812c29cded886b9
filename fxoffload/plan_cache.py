"""Plans on disk, beside the compiled graphs that torch's caches keep.

A process that finds its compiled graphs in a cache partitions nothing, and so makes no plan; the
plan that they were made by comes from here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import fx

from fxoffload.planner.plan import Decision, Keep, Offload, Plan, SavedValue
from fxoffload.torch_internals import describe_tracing

log = logging.getLogger(__name__)


def find_plan_path(folder: Path, gm: fx.GraphModule, inputs: Sequence[Any], identity: str) -> Path:
    """The file for the plan of the Dynamo graph `gm`, under everything that `identity` names."""
    return folder / f"{hash_graph(gm, inputs, identity)}.json"


def hash_graph(gm: fx.GraphModule, inputs: Sequence[Any], identity: str) -> str:
    """A digest of a Dynamo graph, and of what its compilation depends on beside it.

    That is the code of the graph and of the bodies of its higher-order ops, the layout of its
    inputs and which of them need gradients, torch's version and the modes it traces in, and
    `identity`.
    """
    bodies = (
        f"{name}: {module.code}"
        for name, module in gm.named_modules()
        if isinstance(module, fx.GraphModule)
    )
    shown = (_describe_input(item) for item in inputs)
    text = "\n".join([identity, torch.__version__, describe_tracing(), *bodies, *shown])
    return hashlib.sha256(text.encode()).hexdigest()


def _describe_input(item: Any) -> str:
    if not isinstance(item, torch.Tensor):
        return str(item)
    strides = item.stride() if item.layout is torch.strided else item.layout
    grad = " needs a gradient" if item.requires_grad else ""
    return f"{item.dtype} {list(item.shape)} {strides} {item.device}{grad}"


def keep_plan(path: Path, plan: Plan) -> None:
    """Write `plan`, in one piece; a folder that takes no file is only logged."""
    write_whole(path, encode_plan(plan).encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one piece, its folder too; one that takes no file is only logged."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # In a folder of its own, which goes whatever happens.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                file.write(content)
            os.replace(file.name, path)
    except OSError as error:
        log.info("%s cannot be written, a later process will not know it: %s", path, error)


def recall_plan(path: Path) -> Plan | None:
    """The plan that keep_plan wrote, or None where there is none that can be read."""
    try:
        return decode_plan(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.info("%s holds no plan: %s", path, error)
        return None


def encode_plan(plan: Plan) -> str:
    """`plan` as JSON; decode_plan gives it back."""
    decisions = [{"kind": type(each).__name__, **asdict(each)} for each in plan.decisions]
    return json.dumps({**asdict(plan), "decisions": decisions})


def decode_plan(text: str) -> Plan:
    """The plan that encode_plan wrote. Raises ValueError for any other text."""
    try:
        record: dict[str, Any] = json.loads(text)
        record["values"] = tuple(_decode_value(**value) for value in record["values"])
        record["decisions"] = tuple(_decode_decision(**each) for each in record["decisions"])
        record["kept_at_peak"] = tuple((reason, size) for reason, size in record["kept_at_peak"])
        return Plan(**record)
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"no record of a plan: {error!r}") from error


def _decode_decision(*, kind: str, **fields: Any) -> Decision:
    return {"Keep": Keep, "Offload": Offload}[kind](**fields)


def _decode_value(*, members: list[str], **fields: Any) -> SavedValue:
    return SavedValue(members=tuple(members), **fields)
