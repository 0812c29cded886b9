"""What torch's structured trace writes, into a folder as TORCH_TRACE does, and what is in it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch._logging import _internal as torch_logging


@dataclass(frozen=True)
class Artifact:
    """frame: number of the Dynamo frame that was compiled; None for none."""

    name: str
    encoding: str
    frame: int | None
    payload: str


@contextmanager
def traced_into(folder: Path) -> Iterator[None]:
    handler = torch_logging.LazyTraceHandler(str(folder))
    handler.setFormatter(torch_logging.TorchLogsFormatter(trace=True))
    torch_logging.trace_log.addHandler(handler)
    try:
        yield
    finally:
        torch_logging.trace_log.removeHandler(handler)
        handler.close()


def read_artifacts(folder: Path) -> list[Artifact]:
    """Those of fxoffload. A record is a line with JSON; the lines of its payload have a tab."""
    (path,) = folder.glob("*.log")
    found: list[tuple[dict[str, Any], list[str]]] = []
    for line in path.read_text().splitlines():
        if line.startswith("\t"):
            found[-1][1].append(line[1:])
        else:
            found.append((json.loads(line[line.index("] ") + 2 :]), []))
    return [
        Artifact(each["name"], each["encoding"], record.get("frame_id"), "\n".join(lines))
        for record, lines in found
        if (each := record.get("artifact", {"name": ""}))["name"].startswith("fxoffload_")
    ]


def silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody traces, as without the variable."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "handlers", [])
