"""The command bench: the list of suites, how it runs one, and wrong use."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from command_line import check_usage_error, run

from fxoffload.cli import bench

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_suite_is_listed() -> None:
    pages = BENCHMARKS.glob("*.py")
    suites = {p.stem for p in pages if re.search(r"^main = Benchmark\(", p.read_text(), re.M)}
    assert set(bench.SUITES) == suites
    rows = json.loads(run("bench", "--json").stdout)
    assert {row["suite"] for row in rows} == suites
    assert all(row["takes"] and row["shows"].endswith((".", "?")) for row in rows)
    text = run("bench").stdout
    assert all(re.search(rf"^{name} ", text, re.M) for name in suites)


def test_flags_go_to_the_suite(tmp_path: Path) -> None:
    record = BENCHMARKS / "results" / "planning_time.jsonl"
    result = run("bench", "planning_time", "--report", "--output", str(record))
    assert result.exit_code == 0, result.output
    assert "| one simulation" in result.stdout
    assert "--rounds" in run("bench", "planning_time", "--help").stdout


def test_wrong_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_usage_error(run("bench", "rock"), "suite='rock'", "did you mean 'rok'?")
    check_usage_error(run("bench", "--json", "rok"), "--output")
    check_usage_error(run("bench", "--nope"), "--nope", "fxoffload bench --help")
    wrong = run("bench", "planning_time", "--layers", "many")
    assert wrong.exit_code == 2
    assert "argument --layers: invalid int value: 'many'" in wrong.stderr
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "benchmarks.limits", raising=False)
    monkeypatch.delitem(sys.modules, "fxoffload.cli.byte_models", raising=False)
    check_usage_error(run("bench", "limits"), "package transformers", "make setup")
    monkeypatch.setattr(bench, "CLONE", tmp_path)
    for arguments in ((), ("rok",)):
        check_usage_error(run("bench", *arguments), "not part of the installed", "clone")
