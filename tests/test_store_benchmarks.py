"""The benchmarks of the store at a tiny size: correct counts, and readable errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks import checksum_cost, op_time


def run(module: ModuleType, path: Path, *arguments: str) -> dict[str, Any]:
    output = path / "results.jsonl"
    module.main([*arguments, "--directory", str(path), "--output", str(output)])
    (line,) = output.read_text().splitlines()
    return json.loads(line)


@pytest.mark.parametrize("tier", ["nvme", "host"])
def test_op_time(spill_directory: Path, tier: str, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--sizes", "64KiB", "--rounds", "2", "--values", "2", "--host-budget", "1MiB")
    record = run(op_time, spill_directory, *sizes, "--tier", tier)
    assert record["ioengine"].startswith("memory" if tier == "host" else "posix")
    found = [(item["op"], item["kind"]) for item in record["times"]]
    assert found == [(op, kind) for kind in op_time.KINDS for op in op_time.OP_NAMES]
    for item in record["times"]:
        assert item["calls"] >= 2
        assert 0 < item["p10_seconds"] <= item["median_seconds"] <= item["p90_seconds"] < 1
    assert "host time of one call" in capsys.readouterr().out


def test_op_time_checks_its_limit(spill_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op_time, "LIMIT_SECONDS", 1e-9)
    with pytest.raises(SystemExit) as stop:
        run(op_time, spill_directory, "--sizes", "64KiB", "--rounds", "1", "--check")
    assert stop.value.code == 1


def test_checksum_cost(spill_directory: Path) -> None:
    sizes = ("--size", "64KiB", "--values", "4", "--rounds", "2")
    record = run(checksum_cost, spill_directory, *sizes)
    assert [len(rounds) for rounds in record["rounds"]] == [2, 2]
    assert record["seconds_ratio"] > 0
    for kind in ("plain", "checked"):
        assert record[f"{kind}_mib_per_second"] > 0


@pytest.mark.parametrize("module", [op_time, checksum_cost])
def test_what_cannot_be_opened_is_refused_in_words(
    module: ModuleType, spill_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(module, spill_directory, "--ioengine", "posics")
    assert stop.value.code == 2
    assert "did you mean 'posix'?" in capsys.readouterr().err
