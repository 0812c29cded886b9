"""Plans on disk, beside the compiled graphs that torch's caches keep.

A process that finds its compiled graphs in a cache partitions nothing, and so makes no plan; the
plan that they were made by comes from here.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from fxoffload.plan import Plan

log = logging.getLogger(__name__)


def find_plan_path(folder: Path, gm: fx.GraphModule, inputs: Sequence[Any], identity: str) -> Path:
    """The file for the plan of the Dynamo graph `gm`, under everything that `identity` names."""
    return folder / f"{hash_graph(gm, inputs, identity)}.plan"


def hash_graph(gm: fx.GraphModule, inputs: Sequence[Any], identity: str) -> str:
    """A digest of a Dynamo graph, the layout of its inputs, torch's version and `identity`."""
    shown = [
        f"{item.dtype} {list(item.shape)} {item.stride()} {item.device}"
        if isinstance(item, torch.Tensor)
        else str(item)
        for item in inputs
    ]
    text = "\n".join([identity, torch.__version__, gm.code, *shown])
    return hashlib.sha256(text.encode()).hexdigest()


def keep_plan(path: Path, plan: Plan) -> None:
    """Write `plan`, in one piece; a folder that takes no file is only logged."""
    write_whole(path, pickle.dumps(plan))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one piece, its folder too; one that takes no file is only logged."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(content)
        os.replace(file.name, path)
    except OSError as error:
        log.info("%s cannot be written, a later process will not know it: %s", path, error)


def recall_plan(path: Path) -> Plan | None:
    """The plan that keep_plan wrote, or None where there is none that can be read."""
    try:
        plan: Any = pickle.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, pickle.UnpicklingError, AttributeError, EOFError, TypeError) as error:
        log.info("%s holds no plan: %s", path, error)
        return None
    return plan if isinstance(plan, Plan) else None
