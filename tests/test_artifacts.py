"""Artifacts in torch's structured trace: graphs and plan of each graph, schedules of steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from trace_files import Artifact, read_artifacts, silence, traced_into

import fxoffload
from fxoffload import artifacts, backend, torch_internals
from fxoffload.passes import Transformed
from fxoffload.planner.plan import Plan
from fxoffload.sizes import MIB

NAMES = (
    "joint_graph", "forward_graph_before", "backward_graph_before", "forward_graph_after",
    "backward_graph_after", "plan",
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("fresh_dynamo", "fresh_programs")


def run_steps(folder: Path, count: int, **options: Any) -> None:
    """Steps of two graphs: the first saves two values of 1 MiB and an output, the other one."""

    def run(x: Tensor) -> Tensor:
        y = ((x @ x).tanh() @ x).tanh() @ x
        torch._dynamo.graph_break()
        return (y @ x).sigmoid().sum()

    chosen = {"directory": folder, "compiler": "eager", "memory_budget": "min", **options}
    step = torch.compile(run, backend="fxoffload", options=chosen)
    for _ in range(count):
        step(torch.ones(512, 512, requires_grad=True)).backward()


def read_plans(found: list[Artifact]) -> list[dict[str, Any]]:
    return [json.loads(each.payload) for each in found if each.name == "fxoffload_plan"]


def test_each_graph_has_its_graphs_and_its_plan(tmp_path: Path, spill_directory: Path) -> None:
    with traced_into(tmp_path / "trace"):
        run_steps(spill_directory, 1)
    found = read_artifacts(tmp_path / "trace")
    assert [(each.frame, each.name) for each in found] == [
        (frame, f"fxoffload_{name}") for frame in (0, 1) for name in NAMES
    ]
    for each in found:
        assert each.encoding == ("json" if each.name == "fxoffload_plan" else "string")
        ours = "torch.ops.fxoffload." in each.payload
        assert ours == each.name.endswith("after")
    joint = next(each for each in found if each.name.endswith("joint_graph"))
    assert "tanh_backward" in joint.payload
    assert "File: " in joint.payload, "lines of the program"


def test_a_plan_has_every_value_and_what_stays_by_reason(
    tmp_path: Path, spill_directory: Path
) -> None:
    with traced_into(tmp_path / "trace"):
        run_steps(spill_directory, 1, min_bytes=MIB + 1)
        torch._dynamo.reset()
        run_steps(spill_directory, 1)
    small, _, plan, last = read_plans(read_artifacts(tmp_path / "trace"))
    (reason,) = small["kept_bytes_by_reason"]
    assert "min_bytes" in reason
    assert small["kept_bytes_by_reason"][reason] == small["saved_bytes"] == 3 * MIB
    assert {each["decision"] for each in small["values"]} == {"keep"}
    assert {each["reason"] for each in small["values"]} == {reason}
    assert small["moved_bytes"] == 0
    tanh = next(each for each in plan["values"] if each["name"] == "tanh")
    assert tanh["bytes"] == MIB
    assert (tanh["decision"], tanh["reason"]) == ("nvme", "makes room")
    assert (tanh["op"], tanh["shape"], tanh["dtype"]) == ("tanh", "512 x 512", "float32")
    assert Path(tanh["source"].split(":")[0]).name == "test_artifacts.py"
    assert tanh["write_ends_before"]
    assert plan["moved_bytes"] == sum(
        each["bytes"] for each in plan["values"] if each["decision"] == "nvme"
    )
    assert last["values"]


def test_a_running_step_has_its_schedule(tmp_path: Path, spill_directory: Path) -> None:
    with traced_into(tmp_path / "trace"):
        run_steps(spill_directory, 3)
    schedules = [each for each in read_artifacts(tmp_path / "trace") if "schedule" in each.name]
    assert schedules
    shown = json.loads(schedules[-1].payload)
    (known,) = fxoffload.schedules()
    assert shown["moved_bytes"] == known.moved_bytes > 0
    assert [call["call"] for call in shown["calls"]] == [0, 1]
    sent = [set(call["destinations"].values()) for call in shown["calls"]]
    assert sent == [set(call.destinations.values()) for call in known.calls]


def test_no_plan_is_described_where_nobody_traces(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it is described")

    silence(monkeypatch)
    for name in ("describe_plan", "describe_schedule"):
        monkeypatch.setattr(artifacts, name, refuse)
    run_steps(spill_directory, 3)


def test_a_plan_from_the_cache_is_shown(
    tmp_path: Path, spill_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch does not partition then: there is a plan, and no graph."""

    def compile_nothing(gm: fx.GraphModule, *_: object) -> Any:
        return gm.forward

    known = Transformed(Plan((), (), peak_bytes=17, unmoved_peak_bytes=19), None)
    monkeypatch.setattr(torch_internals, "compile_with_inductor", compile_nothing)
    monkeypatch.setattr(backend, "recall_plan", lambda path: known)
    with traced_into(tmp_path / "trace"):
        run_steps(spill_directory, 1, compiler="inductor")
    found = read_artifacts(tmp_path / "trace")
    assert [each.name for each in found] == 2 * ["fxoffload_plan"]
    assert [plan["peak_bytes"] for plan in read_plans(found)] == [17, 17]
