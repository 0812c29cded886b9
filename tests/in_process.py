"""Runs what a benchmark does in fresh processes in the process of the tests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_model import TinyModel

from fxoffload import runtime
from fxoffload.cli.byte_models import BUILDERS


@contextmanager
def run_in_process(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> Generator[list[Path]]:
    """Let `run_fresh` of a benchmark run in this process, which has imported everything already.

    And with a model that is traced in little time. The list is of the homes of their caches.
    """
    homes: list[Path] = []
    monkeypatch.setitem(BUILDERS, "gpt", TinyModel)
    threads, limit = torch.get_num_threads(), torch.compiler.config.recompile_limit

    def run_here(
        environment: dict[str, str], work: Callable[..., Any], *args: Any
    ) -> Iterator[dict[str, Any]]:
        homes.append(Path(environment.get("XDG_CACHE_HOME", os.environ["XDG_CACHE_HOME"])))
        torch._dynamo.reset()
        runtime.close_stores()  # One that is open already would not be limited.
        with monkeypatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(homes[-1]))
            records = list(work(*args))
        return map(json.loads, map(json.dumps, records))

    monkeypatch.setattr(module, "run_fresh", run_here)
    yield homes
    runtime.close_stores()
    torch.set_num_threads(threads)
    torch.compiler.config.recompile_limit = limit
