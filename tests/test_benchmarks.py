"""The measuring code of the benchmarks on known cases, and a tiny run of each benchmark."""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import run_in_process
from torch import nn

from fxoffload.sizes import MIB

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks import activation_peak, compile_time, measure
from benchmarks.fresh_process import ChildFailed, run_fresh
from benchmarks.runner import RESULTS

CPU = torch.device("cpu")


# Long enough for a sample, on a machine that does other things too.
NOTICED_SECONDS = 0.05
# Of Python's objects, and of what malloc puts around a block.
SLACK_BYTES = 256 * 1024


def test_peak_of_a_known_case() -> None:
    def step() -> torch.Tensor:
        first = torch.empty(10 * MIB, dtype=torch.uint8)
        time.sleep(NOTICED_SECONDS)
        del first
        return torch.empty(5 * MIB, dtype=torch.uint8)

    curve = measure.record_memory(step)
    assert curve.peak_bytes == pytest.approx(10 * MIB, abs=SLACK_BYTES)
    assert curve.nbytes[-1] == pytest.approx(5 * MIB, abs=SLACK_BYTES)
    assert list(curve.seconds) == sorted(curve.seconds)


def test_what_lived_before_is_taken_off() -> None:
    held = [torch.empty(20 * MIB, dtype=torch.uint8)]
    kept = torch.empty(40 * MIB, dtype=torch.uint8)

    def step() -> torch.Tensor:
        held.clear()
        return torch.empty(25 * MIB, dtype=torch.uint8)

    assert measure.record_memory(step).peak_bytes == pytest.approx(5 * MIB, abs=SLACK_BYTES)
    del kept


def test_curve_of_a_training_step() -> None:
    model = nn.Sequential(nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 1))
    x = torch.randn(8192, 512)
    model(x).sum().backward()  # Libraries allocate buffers of their own at the first call.
    model.zero_grad()
    curve = measure.record_step(lambda: model(x).sum(), CPU)
    gradient_bytes = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    # Saved for the backward: the results of the first layer and of tanh.
    assert curve.peak_bytes >= 2 * 8192 * 512 * 4
    assert curve.nbytes[-1] == pytest.approx(gradient_bytes, abs=SLACK_BYTES)
    assert curve.backward_seconds is not None
    assert 0 < curve.backward_seconds < curve.seconds[-1]
    assert measure.MemoryCurve(**asdict(curve)) == curve


def test_what_another_thread_frees_counts_no_longer() -> None:
    """As torch's profiler would have it: the store lets go of a value where its write ended."""

    def step() -> None:
        held = [torch.empty(20 * MIB, dtype=torch.uint8)]
        time.sleep(NOTICED_SECONDS)
        thread = threading.Thread(target=held.clear)
        thread.start()
        thread.join()
        _ = torch.empty(5 * MIB, dtype=torch.uint8)
        time.sleep(NOTICED_SECONDS)

    curve = measure.record_memory(step)
    assert curve.peak_bytes == pytest.approx(20 * MIB, abs=SLACK_BYTES)


def test_peak_rss_grows_with_what_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = import_child(
        tmp_path,
        monkeypatch,
        "from benchmarks.measure import peak_rss_bytes\n"
        "def work(nbytes: int):\n"
        "    before = peak_rss_bytes()\n"
        "    memory = b'1' * nbytes\n"
        "    del memory\n"
        "    yield {'grown': peak_rss_bytes() - before}\n",
    )
    (record,) = run_fresh({}, work, 64 * MIB)
    assert 60 * MIB < record["grown"] < 80 * MIB


def import_child(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Any:
    """The function `work` of a module with this text, which a child can import as well."""
    (folder / "module_of_child.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "module_of_child", raising=False)
    return importlib.import_module("module_of_child").work


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('no luck')", "work ended with status 1:.*no luck"),
        ("raise ConfigError(f'unknown option {name!r}')", "^ConfigError: unknown option 'x'$"),
    ],
)
def test_failure_of_a_child_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    text = f"from fxoffload import ConfigError\ndef work(name: str):\n    {body}\n    yield\n"
    work = import_child(tmp_path, monkeypatch, text)
    with pytest.raises(ChildFailed, match=f"(?s){message}"):
        list(run_fresh({}, work, "x"))


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_kept_records_are_reported(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = path.read_text()
    importlib.import_module(f"benchmarks.{path.stem}").main(["--report"])
    printed = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("|--") for line in printed) >= len(kept.splitlines())
    assert path.read_text() == kept


@pytest.mark.samples_memory
def test_activation_peak(
    spill_directory: Path,
    fresh_dynamo: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Both variants have equal losses; the second one writes its bytes and reads them back."""
    output = spill_directory / "results.jsonl"
    # Large enough for the peak to last: it is sampled, on cores that other tests use, too.
    sizes = ("--layers", "1", "--hidden", "64", "--batch", "128", "--length", "64", "--steps", "2")
    options = ("--threads", "1", "--min-bytes", "1", "--memory-budget", "min", "--check")
    places = ("--directory", str(spill_directory), "--output", str(output), "--compiler", "eager")
    with run_in_process(monkeypatch, activation_peak), pytest.raises(SystemExit) as stop:
        activation_peak.main([*sizes, *options, *places])
    assert stop.value.code == 1
    # No such size can keep them.
    assert "beyond the limits: peak ratio" in capsys.readouterr().out
    (line,) = output.read_text().splitlines()
    record = json.loads(line)
    moved, plain = record["moved"], record["plain"]
    # The logits, an eighth, live to the end of the step for the planner; the caller drops them.
    assert 0.8 < moved["peak_bytes"] / moved["predicted_peak_bytes"] < 1.05
    assert record["peak_ratio"] == moved["peak_bytes"] / plain["peak_bytes"]
    assert moved["rss_bytes"] > 100 * MIB
    assert 0 < moved["pass_seconds"] < moved["compile_seconds"]
    proof = moved["proof"]
    assert 0 < proof["offloaded_bytes"] == proof["written_bytes"] == proof["read_bytes"]
    pairs: Sequence[dict[str, Any]] = record["pairs"]
    assert len(pairs) == record["steps"] == 2
    for pair in pairs:
        assert pair["plain_loss"] == pytest.approx(pair["fxoffload_loss"], abs=1e-5)
        assert pair["statistics"]["offloaded_bytes"] == proof["offloaded_bytes"]
        assert pair["statistics"]["live_bytes"] == 0
    assert record["filesystems"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--memory-budget", "lots"), "memory_budget='lots' is not a size"),
        (("--hidden", "100"), "--hidden 100 is not a multiple of the 8 heads"),
        (("--model", "t5", "--layers", "3"), "--layers 3 is odd"),
        (("--batch", "0"), "pass at least 1"),
        (("--report", "--output", "no_such_file"), "there is no file no_such_file"),
    ],
)
def test_activation_peak_refuses_in_words(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        activation_peak.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_compile_time(spill_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph from a full cache moves the same bytes as the compiled one."""
    monkeypatch.setattr(compile_time, "VARIANTS", ("fxoffload",))
    arguments = compile_time.CompileArguments(
        layers=1, hidden=64, batch=2, length=64, rounds=1, threads=1,
        min_bytes="16KiB", memory_budget="min", directory=spill_directory,
    )  # fmt: skip
    (found,) = compile_time.measure(arguments, print)["rounds"]
    cold, warm = found["fxoffload"]["cold"], found["fxoffload"]["warm"]
    assert cold["plans"] > 0
    assert warm["plans"] == 0
    assert cold["offloaded_bytes"] == warm["offloaded_bytes"] > 0
    assert 0 < warm["compile_seconds"] < cold["compile_seconds"]


def test_compile_time_in_figures() -> None:
    def make_round(plain: float, moved: float) -> dict[str, Any]:
        def make(seconds: float) -> dict[str, Any]:
            record = {"compile_seconds": seconds, "pass_seconds": 0.1, "offloaded_bytes": 5}
            return {"cold": record, "warm": record}

        return {"plain": make(plain), "fxoffload": make(moved)}

    rounds = [make_round(10, 11), make_round(20, 20), make_round(10, 12)]
    sizes = {"model": "gpt", "layers": 1, "hidden": 64, "batch": 2, "length": 64, "threads": 1}
    machine = {"cpu": "some", "torch": "2", "compiler": "eager"}
    (table,) = compile_time.tabulate({**sizes, **machine, "rounds": rounds})
    _, cold, warm = table.rows
    assert cold[1:] == warm[1:] == ["10.0", "12.0", "1.100 (1.000 to 1.200)", "0.10", "5"]
