"""The command train: what it prints and saves, and wrong use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import check_usage_error, run
from toys import HARDWARE

from fxoffload.cli import train
from fxoffload.cli.report import read_report
from fxoffload.cli.training import SETTLING_STEPS, TrainingRecord
from fxoffload.errors import ConfigError

SMALL = (
    *("--layers", "1", "--hidden", "64", "--length", "32", "--batch", "8", "--steps", "2"),
    *("--min-bytes", "1KiB", "--memory-budget", "min"),
)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Inductor, and without probes of this machine."""
    monkeypatch.setenv("FXOFFLOAD_COMPILER", "eager")
    monkeypatch.setenv("FXOFFLOAD_HARDWARE", json.dumps(HARDWARE))


@pytest.fixture
def text(tmp_path: Path) -> str:
    file = tmp_path / "text.txt"
    file.write_text("the quick brown fox jumps over the lazy dog. " * 20)
    return str(file)


@pytest.mark.usefixtures("fresh_dynamo", "fresh_programs", "quick")
def test_json_and_a_saved_report(text: str, spill_directory: Path, tmp_path: Path) -> None:
    saved = tmp_path / "report.json"
    where = ("--directory", str(spill_directory), "--report", str(saved))
    result = run("train", text, *SMALL, *where, "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert len(data["losses"]) == SETTLING_STEPS + 2
    assert data["moved"]["written_bytes"] > 0
    assert data["verdict"].startswith("peak ")
    assert read_report(saved).moved_bytes > 0


def test_text_has_each_fact_in_a_line() -> None:
    moved = {"written_bytes": 2.0**21, "read_bytes": 2.0**20, "forwarded_bytes": 0.0}
    record = TrainingRecord("a model", [5.5, 4.5], [1.0, 3.0, 2.0], 2**22, moved, 0.25)
    lines = train.format_training(record).splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "trained", "loss", "step", "activation peak", "moved in a step", "waits in a step",
    ]  # fmt: skip
    for fact in ("5.5000 -> 4.5000", "2.000 s", "4.0 MiB", "2.0 MiB written", "0.250 s"):
        assert fact in "\n".join(lines)
    unknown = TrainingRecord("a model", [5.5], [1.0], None, None, 0.0)
    assert "not measured" in train.format_training(unknown)
    assert "moved" not in train.format_training(unknown)


def test_wrong_use(text: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    check_usage_error(run("train", missing), missing, "No such file")
    check_usage_error(run("train", str(tmp_path)), "Is a directory")
    check_usage_error(run("train", text, "--length", "5000"), "has 900 bytes", "--length")
    check_usage_error(run("train", text, "--length", "64", "--hidden", "200"), "--hidden 200")
    few = ("--length", "64", "--model", "t5", "--layers", "3")
    check_usage_error(run("train", text, *few), "--layers 3 is odd")
    check_usage_error(run("train", text, "--memory-budget", "lots"), "memory_budget='lots'")
    check_usage_error(run("train", text, "--directory", missing), missing, "does not exist")
    check_usage_error(run("train", text, "--length", "64", "--device", "tpu"), "device='tpu'")
    check_usage_error(run("train", text, "--length", "64", "--device", "meta"), "not supported")
    nowhere = str(tmp_path / "none" / "report.json")
    check_usage_error(run("train", text, "--length", "64", "--report", nowhere), nowhere)
    check_usage_error(run("train", text, "--plain", "--report", nowhere), "--plain")


def test_without_a_compiler(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    for flags in ((), ("--plain",)):
        result = run("train", text, "--length", "64", *flags)
        check_usage_error(result, "'no-such-compiler' is not found", "g++")


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    check_usage_error(run("train", text, "--device", "cuda"), "0 GPU(s)", "fxoffload doctor")
    with pytest.raises(ConfigError, match="cuda:3"):
        train.choose_device("cuda:3")
    assert train.choose_device("cpu") == torch.device("cpu")


@pytest.mark.usefixtures("fresh_dynamo", "fresh_programs", "quick")
def test_a_budget_that_cannot_be_met_exits_with_1(
    text: str, spill_directory: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "report.json"
    saved.write_text("of another run")
    where = ("--directory", str(spill_directory), "--memory-budget", "1KiB")
    result = run("train", text, *SMALL, *where, "--report", str(saved))
    assert result.exit_code == 1
    assert saved.read_text() == "of another run"
    assert "cannot be met" in result.stderr
    assert "Traceback" not in result.output
