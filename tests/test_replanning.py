"""Replanning after measured steps: once, if it pays, and by the same numbers on all ranks."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext
from waiting import wait_for_writes

import fxoffload
from fxoffload import machine, replanning, runtime
from fxoffload.ops import Clocks
from fxoffload.planner.plan import Plan
from fxoffload.planner.simulation import Simulation
from fxoffload.replanning import ReplannedGraph, agree, pays
from fxoffload.torch_internals import DynamoGraph

WIDTH = 64
EVENT = ("wait", "a")


def make_simulation(seconds: float, peak_bytes: int = 1000) -> Simulation:
    return Simulation(seconds, 0.0, 0.0, (peak_bytes,), 0, 0, 0)


def make_plan(seconds: float, peak_bytes: int = 1000) -> Plan:
    return Plan((), (), peak_bytes, peak_bytes, step_seconds=seconds)


# --- the decision -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "compile_seconds", "expected"),
    [(9.0, 900.0, True), (9.0, 1100.0, False), (9.95, 0.0, False), (10.0, 0.0, False),
     (11.0, 0.0, False)],
)  # fmt: skip
def test_a_faster_plan_must_repay_its_compilation(
    after: float, compile_seconds: float, expected: bool
) -> None:
    assert pays(make_simulation(10.0), make_plan(after), compile_seconds) is expected


@pytest.mark.parametrize(
    ("seconds", "peak_bytes", "lowers_peak", "expected"),
    [(10.0, 900, True, True), (10.0, 900, False, False), (10.0, 990, True, False),
     (10.1, 500, True, False)],
)  # fmt: skip
def test_a_lower_peak_counts_without_a_budget(
    seconds: float, peak_bytes: int, lowers_peak: bool, expected: bool
) -> None:
    plan = make_plan(seconds, peak_bytes)
    assert pays(make_simulation(10.0), plan, 100.0, lowers_peak=lowers_peak) is expected


def test_clocks_that_all_ranks_know_are_theirs() -> None:
    own: dict[str, Clocks] = {"graph": {EVENT: 1.5}}
    assert agree(own) == own
    assert agree({}) == {}


# --- the graph that changes ---------------------------------------------------------------------


class Planner:
    """Finds clocks from call `ready` on; counts what it is asked."""

    def __init__(self, ready: int, result: Callable[[int], int] | None, agreed: bool) -> None:
        self.ready, self.result, self.agreed = ready, result, agreed
        self.asked = 0
        self.replanned: list[float] = []

    def find_clocks(self) -> tuple[Clocks, bool] | None:
        self.asked += 1
        return ({EVENT: 1.0}, self.agreed) if self.asked > self.ready else None

    def replan(
        self, inputs: Sequence[Any], clocks: Clocks, compile_seconds: float
    ) -> Callable[[int], int] | None:
        assert inputs == (1,)
        assert clocks == {EVENT: 1.0}
        self.replanned.append(compile_seconds)
        return self.result


@pytest.mark.parametrize(("agreed", "seconds"), [(False, 7.0), (True, 0.0)])
def test_a_new_graph_takes_the_place_of_the_old_one_once(agreed: bool, seconds: float) -> None:
    planner = Planner(2, lambda x: x + 100, agreed)
    graph = ReplannedGraph(lambda x: x, planner.find_clocks, planner.replan, compile_seconds=7.0)
    assert [graph(1) for _ in range(5)] == [1, 1, 101, 101, 101]
    assert planner.replanned == [seconds]
    assert planner.asked == 3


def test_the_old_graph_stays_where_it_does_not_pay() -> None:
    planner = Planner(1, None, False)
    graph = ReplannedGraph(lambda x: x, planner.find_clocks, planner.replan, compile_seconds=1.0)
    assert [graph(1) for _ in range(4)] == [1, 1, 1, 1]
    assert planner.replanned == [1.0]


def test_a_plan_that_cannot_be_made_anew_stays(caplog: pytest.LogCaptureFixture) -> None:
    planner = Planner(1, None, False)

    def fail(*_: object) -> None:
        planner.replan(*_)
        raise fxoffload.StoreFull("no room")

    graph = ReplannedGraph(lambda x: x, planner.find_clocks, fail, compile_seconds=1.0)
    assert [graph(1) for _ in range(4)] == [1, 1, 1, 1]
    assert len(planner.replanned) == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "StoreFull: no room" in caplog.text


# --- a compiled model ---------------------------------------------------------------------------


def make_model() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 1))


def train(compiled: Any, model: nn.Module, steps: int) -> list[int]:
    """Bytes offloaded by each step, whose gradients are right to the last bit."""
    torch.manual_seed(1)
    x = torch.randn(128, WIDTH)
    expected = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    moved: list[int] = []
    for _ in range(steps):
        model.zero_grad()
        fxoffload.reset_statistics()
        compiled(x.clone()).sum().backward()  # As from a loader: another tensor each time.
        wait_for_writes()
        done = fxoffload.statistics()
        assert done.live_bytes == done.write_errors == done.read_errors == 0
        assert done.read_bytes + done.forwarded_bytes == done.offloaded_bytes
        moved.append(done.offloaded_bytes)
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, gradient)
    return moved


@pytest.fixture
def options(
    spill_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_dynamo: None
) -> Iterator[dict[str, Any]]:
    """A device that is taken to be so slow that everything hides, and no profile of others.

    Transfers are taken to be slow too: beside steps as they really are, nothing hides.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(runtime, "recall_speed", lambda *_: runtime.Speed(1e3, 1e3))
    monkeypatch.setattr(machine, "TRANSFER_LATENCY_SECONDS", 10.0)
    before = set(runtime.find_recorders())
    yield {"directory": spill_directory, "compiler": "eager", "min_bytes": 1}
    assert set(runtime.find_recorders()) <= before


def find_profiles(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache" / "fxoffload" / "profiles").glob("*"))


def test_a_plan_that_is_waited_for_is_given_up(
    options: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The roofline says that all hides; the steps take less than one transfer: nothing does."""
    replanning.announce_compilation.cache_clear()
    model = make_model()
    compiled = fxoffload.compile(model, **options)
    with caplog.at_level(logging.INFO, "fxoffload"):
        moved = train(compiled, model, 8)
    assert min(moved[:4]) > 0
    assert moved[4:] == [0] * 4
    assert len(re.findall("planned anew", caplog.text)) == 1
    (said,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "replan=False" in said.message
    assert len(find_profiles(tmp_path)) == 1


def test_the_next_process_starts_from_what_was_measured(options: dict[str, Any]) -> None:
    model = make_model()
    train(fxoffload.compile(model, **options), model, 5)
    torch._dynamo.reset()
    model = make_model()
    assert train(fxoffload.compile(model, **options), model, 2) == [0, 0]


def test_what_was_measured_on_another_device_counts_for_nothing(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    train(fxoffload.compile(model, **options), model, 5)
    torch._dynamo.reset()
    monkeypatch.setattr(fxoffload.runtime, "describe_device", lambda device: "another GPU")
    model = make_model()
    assert min(train(fxoffload.compile(model, **options), model, 5)[:4]) > 0


def test_a_plan_that_is_right_stays(
    options: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """ "min" moves the same whatever nodes take; nor does a new process plan by the profile."""
    options |= {"memory_budget": "min"}
    model = make_model()
    with caplog.at_level(logging.INFO, "fxoffload"):
        moved = train(fxoffload.compile(model, **options), model, 7)
    assert len(set(moved)) == 1
    assert moved[0] > 0
    assert "measured, and the plan stays" in caplog.text
    (plan,) = re.findall("moved .* exposed", caplog.text)
    (profile,) = find_profiles(tmp_path)
    written = profile.stat().st_mtime_ns
    torch._dynamo.reset()
    caplog.clear()
    model = make_model()
    with caplog.at_level(logging.INFO, "fxoffload"):
        assert train(fxoffload.compile(model, **options), model, 6) == moved[:6]
    assert "measured" not in caplog.text
    assert re.findall("moved .* exposed", caplog.text) == [plan]  # By the roofline, as before.
    assert profile.stat().st_mtime_ns == written


def test_replan_false_plans_once(options: dict[str, Any], tmp_path: Path) -> None:
    model = make_model()
    moved = train(fxoffload.compile(model, replan=False, **options), model, 8)
    assert len(set(moved)) == 1
    assert moved[0] > 0
    assert find_profiles(tmp_path) == []


def test_not_while_other_threads_run_steps(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Torch traces in one thread alone: what it compiled before fails in all others meanwhile."""
    model = make_model()
    compiled = fxoffload.compile(model, **options)
    ran, end = threading.Event(), threading.Event()

    def run() -> None:
        train(compiled, model, 1)
        ran.set()
        end.wait()

    thread = threading.Thread(target=run)
    thread.start()
    assert ran.wait(60)
    try:
        with caplog.at_level(logging.INFO, "fxoffload"):
            assert min(train(compiled, model, 8)) > 0
    finally:
        end.set()
        thread.join()
    assert "several threads run steps" in caplog.text


def test_graphs_with_symbolic_sizes_are_planned_once(
    options: dict[str, Any], tmp_path: Path
) -> None:
    model = make_model()
    compiled = fxoffload.compile(model, dynamic=True, **options)
    assert min(train(compiled, model, 8)) > 0
    assert find_profiles(tmp_path) == []


def test_a_graph_whose_sizes_become_symbolic_keeps_its_plan(
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """There is no guard for them: the graph would run for other sizes than it was made for."""
    compiling = DynamoGraph.compiling

    @contextmanager
    def compiling_for_any_batch(self: DynamoGraph, inputs: Sequence[Any]) -> Any:
        context = StatelessSymbolicContext([DimDynamic.DYNAMIC, DimDynamic.STATIC])
        batches = [x for x in inputs if not isinstance(x, nn.Parameter)]
        fakes = [self.fake_mode.from_tensor(x, symbolic_context=context) for x in batches]
        with compiling(self, inputs) as gm:
            yield gm
        del fakes

    monkeypatch.setattr(DynamoGraph, "compiling", compiling_for_any_batch)
    model = make_model()
    with caplog.at_level(logging.INFO, "fxoffload"):
        assert min(train(fxoffload.compile(model, **options), model, 8)) > 0
    assert "symbolic sizes" in caplog.text
    assert find_profiles(tmp_path) == []


@pytest.mark.slow
def test_with_inductor(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    from torch._inductor.utils import fresh_cache

    options |= {"compiler": "inductor"}
    model = make_model()
    x = torch.randn(128, WIDTH)
    with fresh_cache():
        compiled = fxoffload.compile(model, **options)
        moved: list[int] = []
        gradients: list[list[Tensor]] = []
        for _ in range(6):
            fxoffload.reset_statistics()
            gradients.append(list(torch.autograd.grad(compiled(x).sum(), list(model.parameters()))))
            wait_for_writes()
            moved.append(fxoffload.statistics().offloaded_bytes)
        torch._dynamo.reset()
        with caplog.at_level(logging.INFO, "fxoffload"):
            fxoffload.reset_statistics()
            fxoffload.compile(make_model(), **options)(x).sum().backward()
        assert fxoffload.statistics().offloaded_bytes == 0
        assert "compiled before, from torch's cache: moved 0.0" in caplog.text
    assert min(moved[:4]) > 0
    assert moved[4:] == [0, 0]
    for found, expected in zip(gradients[5], gradients[0], strict=True):
        torch.testing.assert_close(found, expected)


# --- ranks --------------------------------------------------------------------------------------

RANK = """
import os, sys
import torch, fxoffload
from fxoffload import backend, planning, runtime
from torch import nn
from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext
rank, directory, port = int(sys.argv[1]), sys.argv[2], sys.argv[3]
os.environ["XDG_CACHE_HOME"] = f"{directory}/cache{rank}"
torch.distributed.init_process_group(
    "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
)
runtime.recall_speed = lambda *_: runtime.Speed(1e3, 1e3)
runtime.recall_contention = lambda *_: runtime.Contention(1e-10, 1e-10)
reviews = []
review = backend._Job.review
def keep_review(self, *args):
    reviews.append(review(self, *args))
    return reviews[-1]
backend._Job.review = keep_review
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
x = torch.randn(128 , 64)
compiled = fxoffload.compile(model, directory=directory, compiler="eager", min_bytes=1)
def step():
    fxoffload.reset_statistics()
    compiled(x).sum().backward()
    return fxoffload.statistics().offloaded_bytes
before = [step() for _ in range(4 + 2 * rank)]
assert min(before) > 0 and not reviews
assert fxoffload.replan() == 1
after = [step() for _ in range(2)]
(found,) = reviews
print(found.profile.digest, hash(found.after.decisions), after)
torch.distributed.destroy_process_group()
"""


def test_ranks_plan_by_the_same_numbers(spill_directory: Path, unused_port: int) -> None:
    """Not each for itself, however many steps; all at the call of replan, by their mean."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(RANK), str(rank), str(spill_directory),
             str(unused_port)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**__import__("os").environ, "PYTHONHASHSEED": "0"},
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert outputs[0][0].strip().endswith("[0, 0]")


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
