"""What fxoffload relies on in torch's structured trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx
from trace_files import Artifact, read_artifacts, silence, traced_into

from fxoffload.torch_internals import emit_artifact, emit_graph, is_tracing


def take_sine(x: Tensor) -> Tensor:
    return torch.sin(x)


def test_an_artifact_is_text_or_json(tmp_path: Path) -> None:
    with traced_into(tmp_path):
        assert is_tracing()
        emit_artifact("words", "string", lambda: "one\ntwo")
        emit_artifact("data", "json", lambda: {"one": [1, None]})
    words, data = read_artifacts(tmp_path)
    assert words == Artifact("fxoffload_words", "string", None, "one\ntwo")
    assert (data.name, data.encoding) == ("fxoffload_data", "json")
    assert json.loads(data.payload) == {"one": [1, None]}


def test_a_graph_is_readable_code(tmp_path: Path) -> None:
    with traced_into(tmp_path):
        emit_graph("graph", fx.symbolic_trace(take_sine))
    (graph,) = read_artifacts(tmp_path)
    assert "sin = torch.sin(x)" in graph.payload
    compile(graph.payload, "graph", "exec")


def test_nothing_is_made_where_nobody_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise AssertionError("the payload is made")

    silence(monkeypatch)
    assert not is_tracing()
    emit_artifact("words", "string", refuse)
    graph = fx.symbolic_trace(take_sine)
    monkeypatch.setattr(graph, "print_readable", refuse)
    emit_graph("graph", graph)
