"""benchmarks/gpu_suite.py, run on the CPU: all of it but the device."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from python_runs import run_python

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))

from benchmarks import gpu_suite
from benchmarks.sections import (
    CLOSING_SECONDS,
    Results,
    Section,
    link_packages,
    read_record,
    run_section,
)


def run(tmp_path: Path, script: str, limit_seconds: float = 60) -> dict[str, Any]:
    """The record of a section whose command is `script`, as the file has it."""
    path = tmp_path / "results.json"
    results = Results(path, {"device": "none"})
    section = Section("one", ("-u", "-c", script), limit_seconds)
    run_section(section, results, dict(os.environ), limit_seconds)
    return json.loads(path.read_text())["sections"]["one"]


def test_records_of_a_section(tmp_path: Path) -> None:
    script = "print('noise'); print('{\"a\": 1}'); print('tests/t.py::t PASSED [ 9%]')"
    done = run(tmp_path, script)
    assert done["status"] == "ok"
    assert done["records"] == [{"a": 1}, {"test": "tests/t.py::t", "outcome": "passed"}]
    assert 0 < done["seconds"] < 60


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("print('{\"a\": 1}'); raise SystemExit(3)", "exit status 3"),
        ('print(\'{"a": 1}\'); print(\'{"error": "no luck"}\')', "no luck"),
        ("pass", "exit status 0"),  # It measured nothing.
    ],
)
def test_a_section_that_fails(tmp_path: Path, script: str, error: str) -> None:
    done = run(tmp_path, f"{script}")
    assert done["status"] == "failed"
    assert error in done["errors"]


def test_a_section_that_hangs_is_killed_and_keeps_its_records(tmp_path: Path) -> None:
    """With what it started, which would hold the pipe open."""
    script = """
import subprocess, sys, time
print('{"a": 1}')
print('last words')
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
time.sleep(60)
"""
    done = run(tmp_path, script, limit_seconds=2)
    assert done["status"] == "failed"
    assert done["records"] == [{"a": 1}]
    assert done["output"] == ["last words"]
    assert done["errors"] == ["killed after 2 s", "exit status -9"]


def test_the_file_is_there_while_a_section_runs(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    script = f"""
print('{{"a": 1}}')
import json, time
for _ in range(500):
    found = json.load(open({str(path)!r}))["sections"]["one"]
    if found["records"]:
        break
    time.sleep(0.01)
print(json.dumps({{"seen": found["records"], "status": found["status"]}}))
"""
    _, seen = run(tmp_path, script)["records"]
    assert seen == {"seen": [{"a": 1}], "status": "running"}


def test_a_section_knows_its_time(tmp_path: Path) -> None:
    (record,) = run(tmp_path, "import os; print('{\"s\":', os.environ['SECTION_SECONDS'], '}')")[
        "records"
    ]
    assert record["s"] == 60 - CLOSING_SECONDS


@pytest.mark.parametrize("outcome", ["PASSED", "FAILED", "ERROR", "SKIPPED (no device)"])
def test_lines_of_tests(outcome: str) -> None:
    line = f"tests/test_gpu.py::test_a[x y-1] {outcome}     [ 50%]\n"
    record = {"test": "tests/test_gpu.py::test_a[x y-1]", "outcome": outcome.split()[0].lower()}
    assert read_record(line) == record
    assert read_record(f"SKIPPED [1] {line}") is None
    assert read_record("{not json\n") is None


def test_packages_are_found_without_an_installation(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "sys.meta_path = [each for each in sys.meta_path if 'editable' not in repr(each).lower()]\n"
        "import benchmarks.gpu_measurements, fxoffload.planner, fxoffload.runtime\n"
        "assert fxoffload.planner.__file__.startswith(fxoffload.__path__[0])\n"
        "print(fxoffload.runtime.__file__)\n"
    )
    with link_packages(tmp_path) as environment:
        done = run_python("-c", script, environment=environment, folder=tmp_path)
        assert done.stdout.startswith(str(tmp_path))


def test_sections_have_names_of_their_own() -> None:
    arguments = gpu_suite.build_parser().parse_args([])
    sections = gpu_suite.plan_sections(arguments)
    names = [section.name for section in sections]
    assert len(set(names)) == len(names)
    assert (names[0], names[-1]) == ("tests", "verdicts")
    # The suite fits into its time when each section takes all of its own.
    assert sum(section.limit_seconds for section in sections) <= gpu_suite.BUDGET_SECONDS < 480


def test_sections_are_measured_again_by_name(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    command = ["--output", str(output), "--only", "bert", "ops"]
    arguments = gpu_suite.build_parser().parse_args(command)
    assert gpu_suite.find_kept(arguments) == {}
    kept = {"gpt": {"status": "ok"}, "bert": {"status": "ok"}, "t5": {"status": "failed"}}
    output.write_text(json.dumps({"sections": kept}))
    found = gpu_suite.find_kept(arguments)
    assert found == kept
    names = [section.name for section in gpu_suite.plan_sections(arguments)]
    assert names == ["ops", "bert", "verdicts"]
    results = Results(output, {}, found)
    results.skip("bert", "no time left")
    results.skip("t5", "no time left")
    sections = json.loads(output.read_text())["sections"]
    assert [sections[name]["status"] for name in kept] == ["ok", "ok", "skipped"]
    # All of them are measured where none is named.
    assert gpu_suite.find_kept(gpu_suite.build_parser().parse_args(command[:2])) == {}


@pytest.mark.skipif(gpu_suite.torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_device_is_said_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "gpu.json"
    with pytest.raises(SystemExit) as stop:
        gpu_suite.main(["--output", str(output)])
    assert stop.value.code == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert not output.exists()


def test_no_time_left_is_said(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    with pytest.raises(SystemExit) as stop:
        gpu_suite.main(["--dry-run", "--output", str(output), "--seconds", "1"])
    assert stop.value.code == 0
    record = json.loads(output.read_text())
    assert record["complete"]
    assert {done["status"] for done in record["sections"].values()} == {"skipped"}


@pytest.mark.slow
def test_dry_run(spill_directory: Path) -> None:
    """A section of each kind, for real, in processes of their own."""
    output = spill_directory / "gpu.json"
    only = ["transfers", "ops", "tests", "nvme"]
    options = ["--output", str(output), "--directory", str(spill_directory), "--only", *only]
    with pytest.raises(SystemExit) as stop:
        gpu_suite.main(["--dry-run", "--seconds", "1000", *options])
    record = json.loads(output.read_text())
    assert stop.value.code == 0, record
    assert record["complete"]
    assert record["torch"] == gpu_suite.torch.__version__
    assert record["commit"]
    assert list(record["sections"]) == [*only, "verdicts"]
    for done in record["sections"].values():
        assert done["status"] == "ok"
    outcomes = {test["outcome"] for test in record["sections"]["tests"]["records"]}
    assert outcomes <= {"skipped", "passed"}
    (ops,) = record["sections"]["ops"]["records"]
    assert set(ops["median_seconds"]) == {"offload", "release", "written", "prefetch", "wait"}
    labels = [x["label"] for x in record["sections"]["nvme"]["records"] if "label" in x]
    assert labels == ["plain", "fxoffload 0.9, on NVMe"]
