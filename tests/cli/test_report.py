"""The command report: what a job saved as text, JSON, page and trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import check_usage_error, run
from torch import nn

import fxoffload
from fxoffload.cli.report import read_report
from fxoffload.errors import ReportError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a report of two layers."""
    folder = tmp_path_factory.mktemp("report")
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
    options = {"directory": folder, "compiler": "eager", "min_bytes": 1, "memory_budget": "min"}
    x = torch.randn(256, 64)
    explanation = fxoffload.explain(lambda x: model(x).sum(), x, options=options)
    file = folder / "report.json"
    file.write_text(explanation.report().to_json())
    return file


def test_text_and_json(saved: Path) -> None:
    report = read_report(saved)
    assert run("report", str(saved)).stdout == f"{report}\n"
    assert json.loads(run("report", str(saved), "--json").stdout) == json.loads(saved.read_text())


def test_page_and_trace(saved: Path, tmp_path: Path) -> None:
    page, trace = tmp_path / "page.html", tmp_path / "trace.json"
    result = run("report", str(saved), "--html", str(page), "--trace", str(trace))
    assert (result.exit_code, result.stdout) == (0, "")
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert json.loads(trace.read_text())["traceEvents"]


def test_wrong_use(saved: Path, tmp_path: Path) -> None:
    check_usage_error(run("report", str(tmp_path / "none.json")), "none.json", "No such file")
    check_usage_error(run("report", str(tmp_path)), "Is a directory")
    other = tmp_path / "other.json"
    other.write_text("{}")
    check_usage_error(run("report", str(other)), "other.json: this is no report")
    other.write_bytes(b"\xff\xfe")
    check_usage_error(run("report", str(other)), "no text")
    page = tmp_path / "none" / "page.html"
    check_usage_error(run("report", str(saved), "--html", str(page)), "page.html")
    check_usage_error(run("report", str(saved), "--profile", str(other)), "--trace")
    profiled = ("--profile", str(other), "--trace", str(tmp_path / "trace.json"))
    check_usage_error(run("report", str(saved), *profiled), "other.json is no trace of a profiler")
    with pytest.raises(ReportError, match="cannot be read"):
        read_report(tmp_path / "none.json")
