"""Keep plans and graph models on disk, beside the compiled graphs in torch's caches.

A process that finds its compiled graphs in those caches does not partition, and so makes no plan;
it reads here what is known of the graphs that were compiled.
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
from typing import Any, Literal

import torch
from torch import fx

from fxoffload import passes
from fxoffload.passes import Transformed
from fxoffload.planner.graph_model import GraphModel, HalfModel
from fxoffload.planner.plan import Cut, Decision, Keep, Offload, Origin, Plan, SavedValue
from fxoffload.torch_internals import describe_marks, describe_tracing

log = logging.getLogger(__name__)


def hash_graph(gm: fx.GraphModule, inputs: Sequence[Any], identity: str) -> str:
    """A name for a Dynamo graph and for everything else that its compilation depends on.

    It covers the code of the graph and of the bodies of its higher-order ops, the marks of the
    program, the layout of the inputs and which of them need gradients, torch's version, the modes
    that it traces in, and `identity`, which names what the partitioner depends on.
    """
    bodies = (
        f"{name}: {module.code}"
        for name, module in gm.named_modules()
        if isinstance(module, fx.GraphModule)
    )
    shown = (_describe_input(item) for item in inputs)
    marks = describe_marks(gm)
    text = "\n".join([identity, torch.__version__, describe_tracing(), marks, *bodies, *shown])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _describe_input(item: Any) -> str:
    if not isinstance(item, torch.Tensor):
        return str(item)
    strides = item.stride() if item.layout is torch.strided else item.layout
    grad = " needs a gradient" if item.requires_grad else ""
    return f"{item.dtype} {list(item.shape)} {strides} {item.device}{grad}"


def keep_plan(path: Path, known: Transformed) -> None:
    """Write `known` atomically to `path`, and make its folder; a failure is only logged."""
    _write(path, encode_plan(known))


def keep_cut(path: Path, cut: Cut) -> None:
    """Write a cut that steps have shown to be the best; as keep_plan."""
    _write(path, json.dumps(cut))


def recall_cut(path: Path) -> Cut | Literal["best"]:
    """What keep_cut wrote to `path`; "best" if there is nothing, or it cannot be read."""
    try:
        found: Any = json.loads(path.read_text())
    except FileNotFoundError:
        return "best"
    except (OSError, ValueError) as error:
        log.info("%s holds no cut: %s", path, error)
        return "best"
    for cut in passes.LEGAL_CUTS:
        if cut == found:
            return cut
    return "best"


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The temporary folder is removed even if the write fails.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                file.write(text.encode())
            os.replace(file.name, path)
    except OSError as error:
        log.info("%s cannot be written, a later process will not know it: %s", path, error)


def recall_plan(path: Path) -> Transformed | None:
    """What keep_plan wrote to `path`; None if there is nothing, or it cannot be read."""
    try:
        return decode_plan(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.info("%s holds no plan: %s", path, error)
        return None


def encode_plan(known: Transformed) -> str:
    """Plan and model as JSON; decode_plan gives them back."""
    plan, model = known.plan, known.model
    decisions = [{"kind": type(each).__name__, **asdict(each)} for each in plan.decisions]
    record = None if model is None else asdict(model)
    return json.dumps({**asdict(plan), "decisions": decisions, "model": record})


def decode_plan(text: str) -> Transformed:
    """What encode_plan wrote. Raises ValueError for any other text."""
    try:
        record: dict[str, Any] = json.loads(text)
        known = record.pop("model")
        model = None if known is None else _decode_model(**known)
        record["values"] = tuple(_decode_value(**value) for value in record["values"])
        record["decisions"] = tuple(_decode_decision(**each) for each in record["decisions"])
        record["kept_at_peak"] = tuple((reason, size) for reason, size in record["kept_at_peak"])
        return Transformed(Plan(**record), model)
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"no record of a plan: {error!r}") from error


def _decode_decision(*, kind: str, **fields: Any) -> Decision:
    return {"Keep": Keep, "Offload": Offload}[kind](**fields)


def _decode_model(
    *, forward: dict[str, Any], backward: dict[str, Any], values: list[dict[str, Any]]
) -> GraphModel:
    return GraphModel(
        _decode_half(**forward),
        _decode_half(**backward),
        tuple(_decode_value(**value) for value in values),
    )


def _decode_half(*, seconds: list[float], fixed_bytes: list[int], ops: list[Any]) -> HalfModel:
    placed = (((str(kind), str(name)), int(position)) for (kind, name), position in ops)
    return HalfModel(tuple(seconds), tuple(fixed_bytes), tuple(placed))


def _decode_value(*, members: list[str], origin: dict[str, str], **fields: Any) -> SavedValue:
    return SavedValue(members=tuple(members), origin=Origin(**origin), **fields)
