"""The command bench: the list of suites, how it runs one, and wrong use."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    assert all(row["minutes"] and row["shows"].endswith((".", "?")) for row in rows)
    assert sum(row["minutes"] for row in rows if row["standard"]) <= 60
    text = run("bench").stdout
    assert all(re.search(rf"^{name} ", text, re.M) for name in suites)
    assert re.search(r"^rok +30 ", text, re.M)
    assert re.search(r"^depth \* +10 ", text, re.M)


def test_the_standard_suites_run_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "STANDARD", ("op_time", "planning_time"))
    code = "import sys; sys.exit('planning' in sys.argv[2] and int(sys.argv[3]))"
    run_process = subprocess.run

    def run_suite(command: list[str], **keywords: Any) -> Any:
        assert (keywords["cwd"] / command[2].replace(".", "/")).with_suffix(".py").is_file()
        return run_process([sys.executable, "-c", code, *command[1:]], **keywords)

    monkeypatch.setattr(bench.subprocess, "run", run_suite)
    for status in (0, 1):
        result = run("bench", "standard", str(status))
        assert result.exit_code == status
        assert result.stderr.startswith("# op_time: about 2 minutes\n# planning_time")
    assert "planning_time (1)" in result.stderr


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
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    (line,) = wrong.stderr.strip().splitlines()
    assert line.startswith(
        "fxoffload bench planning_time: argument --layers: invalid int value: 'many'"
    )
    missing = str(tmp_path / "none")
    for arguments, words in (
        (("depth", "--directory", missing), f"{missing!r} does not exist"),
        (("op_time", "--directory", missing), f"{missing!r} does not exist"),
        (("op_time", "--output", str(tmp_path)), "cannot be written"),
        (("op_time", "--output", "/dev/null/x"), "cannot be written"),
        (("depth", "--device", "tpu"), "device='tpu'"),
    ):
        result = run("bench", *arguments)
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.output
        assert words in result.stderr
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "benchmarks.limits", raising=False)
    monkeypatch.delitem(sys.modules, "fxoffload.cli.byte_models", raising=False)
    check_usage_error(run("bench", "limits"), "package transformers", "make setup")
    monkeypatch.setattr(bench, "CLONE", tmp_path)
    for arguments in ((), ("rok",)):
        check_usage_error(run("bench", *arguments), "not part of the installed", "clone")
