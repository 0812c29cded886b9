"""Plans on disk: they are written atomically and found again, and other files are rejected."""

from __future__ import annotations

import errno
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx
from torch._functorch import config as functorch_config

from fxoffload import passes
from fxoffload.passes import Transformed
from fxoffload.plan_cache import (
    encode_plan,
    hash_graph,
    keep_cut,
    keep_plan,
    recall_cut,
    recall_plan,
)
from fxoffload.planner.graph_model import GraphModel, HalfModel
from fxoffload.planner.plan import Cut, Keep, Offload, Origin, Plan, SavedValue

ORIGIN = Origin("layers.0", "a.py:3", "mm", "2 x 4", "float32")
VALUE = SavedValue("x", ("x",), 8, 8, born=1, last_use=1, first_use=2, freed=3)
# No field has its default: one that a file forgets would come back as another.
PLAN = Plan(
    (VALUE, SavedValue("y", ("y", "z"), 16, 8, 0, 1, 2, 4, True, False, "state", 4, True, ORIGIN)),
    (Offload("host", "a", "b"), Keep("too small")),
    peak_bytes=8,
    unmoved_peak_bytes=9,
    budget_bytes=10,
    step_seconds=0.1,
    exposed_seconds=0.2,
    contended_seconds=0.3,
    cut="loops",
    held_bytes=11,
    kept_at_peak=(("too small", 8), ("state", 4)),
)
MODEL = GraphModel(
    HalfModel((0.1, 0.2), (1, 2), ((("offload", "x"), 1), (("release", "x"), 2))),
    HalfModel((0.3,), (3,), ((("prefetch", "x"), 0), (("wait", "x"), 0))),
    PLAN.values,
)


def sin(x: Tensor) -> Tensor:
    return x.sin()


def cos(x: Tensor) -> Tensor:
    return x.cos()


def test_a_plan_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.plan"
    assert recall_plan(path) is None
    for known in (Transformed(PLAN, None), Transformed(PLAN, MODEL)):
        keep_plan(path, known)
        assert recall_plan(path) == known
        # Origins are no part of what is compared.
        assert [v.origin for v in recall_plan(path).plan.values] == [Origin(), ORIGIN]
    assert list(path.parent.iterdir()) == [path]  # Nothing half-written is left.


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no JSON",
        b"[1]",
        b"{}",
        b'{"values": [], "decisions": [{"kind": "Burn"}], "kept_at_peak": []}',
        b"\xff\xfe",
        pickle.dumps(os.getcwd),  # Nothing in the file is ever run.
        encode_plan(Transformed(PLAN, MODEL)).encode()[:-9],
    ],
)
def test_other_files_hold_no_plan(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.plan"
    path.write_bytes(content)
    assert recall_plan(path) is None


@pytest.mark.parametrize("cut", passes.LEGAL_CUTS)
def test_cuts_come_back(cut: Cut, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.cut"
    assert recall_cut(path) == "best", "nothing was found out"
    keep_cut(path, cut)
    assert recall_cut(path) == cut


@pytest.mark.parametrize("content", ["", "{", "0.7", "[0.8]", '"best"', '"loop"'])
def test_other_files_hold_no_cut(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.cut"
    path.write_text(content)
    assert recall_cut(path) == "best"


def test_a_folder_that_takes_no_file_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.INFO, "fxoffload.plan_cache"):
        keep_plan(tmp_path / "file" / "a.plan", Transformed(PLAN, None))
    assert "cannot be written" in caplog.text


def test_a_full_disk_leaves_no_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", refuse)
    with caplog.at_level(logging.INFO, "fxoffload.plan_cache"):
        keep_plan(tmp_path / "a", Transformed(PLAN, None))
    assert "cannot be written" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_the_name_tells_evaluation_from_training() -> None:
    gm = fx.symbolic_trace(sin)
    x = torch.empty(2, 3)
    training = hash_graph(gm, (x,), "a")
    with torch.no_grad():
        evaluation = hash_graph(gm, (x,), "a")
    with torch.inference_mode():
        inference = hash_graph(gm, (x,), "a")
    with torch.autocast("cpu"):
        autocast = hash_graph(gm, (x,), "a")
    with functorch_config.patch(activation_memory_budget=0.5):
        recomputing = hash_graph(gm, (x,), "a")
    leaf = hash_graph(gm, (torch.empty(2, 3, requires_grad=True),), "a")
    assert len({training, evaluation, inference, autocast, recomputing, leaf}) == 6


def test_the_name_tells_bodies_apart() -> None:
    def nest(body: Callable[[Tensor], Tensor]) -> fx.GraphModule:
        graph = fx.Graph()
        graph.output(graph.call_module("body", (graph.placeholder("x"),)))
        return fx.GraphModule({"body": fx.symbolic_trace(body)}, graph)

    names = [hash_graph(nest(body), (), "a") for body in (sin, cos)]
    assert names[0] != names[1]


def test_the_name_tells_graphs_apart() -> None:
    x = torch.empty(2, 3)

    def find(
        function: Callable[[Tensor], Tensor] = sin, *inputs: object, identity: str = "a"
    ) -> str:
        gm = fx.symbolic_trace(function)
        return hash_graph(gm, inputs or (x,), identity)

    names = [
        find(),
        find(cos),
        find(sin, x.bfloat16()),
        find(sin, torch.empty(4, 3)),
        find(sin, x.t().contiguous().t()),
        find(sin, x, 7),
        find(identity="b"),
    ]
    assert len(set(names)) == len(names)
    assert find() == names[0]
