"""Plans on disk: written in one piece, found again, and nothing else taken for one."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx

from fxoffload.plan import Keep, Plan, SavedValue
from fxoffload.plan_cache import find_plan_path, keep_plan, recall_plan

VALUE = SavedValue("x", ("x",), 8, 8, born=1, last_use=1, first_use=2, freed=3)
PLAN = Plan((VALUE,), (Keep("too small"),), peak_bytes=8, unmoved_peak_bytes=8)


def sin(x: Tensor) -> Tensor:
    return x.sin()


def cos(x: Tensor) -> Tensor:
    return x.cos()


def test_a_plan_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.plan"
    assert recall_plan(path) is None
    keep_plan(path, PLAN)
    assert recall_plan(path) == PLAN
    assert list(path.parent.iterdir()) == [path]  # Nothing half-written is left.


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps([1]), pickle.dumps(PLAN)[:-9]])
def test_other_files_hold_no_plan(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.plan"
    path.write_bytes(content)
    assert recall_plan(path) is None


def test_a_folder_that_takes_no_file_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.INFO, "fxoffload.plan_cache"):
        keep_plan(tmp_path / "file" / "a.plan", PLAN)
    assert "cannot be written" in caplog.text


def test_the_path_tells_graphs_apart(tmp_path: Path) -> None:
    x = torch.empty(2, 3)

    def find(
        function: Callable[[Tensor], Tensor] = sin, *inputs: object, identity: str = "a"
    ) -> Path:
        gm = fx.symbolic_trace(function)
        return find_plan_path(tmp_path, gm, inputs or (x,), identity)

    paths = [
        find(),
        find(cos),
        find(sin, x.bfloat16()),
        find(sin, torch.empty(4, 3)),
        find(sin, x.t().contiguous().t()),
        find(sin, x, 7),
        find(identity="b"),
    ]
    assert len(set(paths)) == len(paths)
    assert find() == paths[0]
