"""benchmarks/peers.py: others' ways, and what is said where they are not there."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch._functorch import config as functorch_config
from torch._inductor import config as inductor_config

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks import peers
from benchmarks.peers import PeerMissing, make_trl_hooks, mark_all, offload_by_torch

TRL = "trl.models.activation_offloading"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says that there is one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_a_cpu_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(PeerMissing, match=r"TRL's OffloadActivations needs a GPU"):
        make_trl_hooks(nn.Linear(1, 1))
    words = "torch's activation offloading needs a GPU"
    with pytest.raises(PeerMissing, match=words), offload_by_torch():
        pass


@pytest.mark.usefixtures("gpu")
def test_trl_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    known: list[nn.Module] = []

    class OffloadActivations(nullcontext[None]):
        def __init__(self) -> None:
            super().__init__()
            self.tracker: dict[int, object] = {}
            self.update_model_params = known.append

    module: Any = ModuleType(TRL)
    module.OffloadActivations = OffloadActivations
    monkeypatch.setitem(sys.modules, TRL, module)
    model = nn.Linear(1, 1)
    hooks: Any = make_trl_hooks(model)
    first = hooks()
    assert hooks() is first  # It counts steps by itself, and has a stream of its own.
    assert known == [model]
    first.tracker[1] = "packed, and never unpacked"
    assert hooks() is hooks() is not first
    assert known == [model, model]


@pytest.mark.usefixtures("gpu")
def test_trl_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, TRL, None)
    with pytest.raises(PeerMissing, match=r"cannot be imported .*; install the wheel of trl"):
        make_trl_hooks(nn.Linear(1, 1))


@pytest.mark.usefixtures("gpu")
def test_pass_of_torch_is_told_to_offload_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """By names that this torch knows."""
    missing = "activation_offload_of_another_torch"
    monkeypatch.setitem(peers.OFFLOADING, missing, True)
    with offload_by_torch():
        assert functorch_config.enable_activation_offloading
        assert functorch_config.activation_offload_separate_stream
        assert functorch_config.activation_offload_cpu_gpu_bw == 54.0
        assert inductor_config.joint_custom_post_pass is mark_all
    assert not functorch_config.enable_activation_offloading
    assert inductor_config.joint_custom_post_pass is None
    monkeypatch.setattr(peers, "functorch_config", SimpleNamespace())
    words = "has no pass for activation offloading"
    with pytest.raises(PeerMissing, match=words), offload_by_torch():
        pass


def test_marks_are_those_that_the_pass_of_torch_looks_for() -> None:
    graph = fx.symbolic_trace(lambda x: x.sin() + torch.cos(x)).graph
    mark_all(graph)
    marked = [node.name for node in graph.nodes if node.meta.get("should_offload")]
    assert marked == ["cos", "add"]
    spec = importlib.util.find_spec("torch._functorch._activation_offloading.activation_offloading")
    assert spec is not None
    assert spec.origin is not None
    assert 'node.meta.get("should_offload", False)' in Path(spec.origin).read_text()
