"""The command plan: named hardware, this machine, what-if, the largest batch, and wrong use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import check_usage_error, run

from fxoffload.sizes import MIB

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

MODEL = ("plan", "planned_models:with_function", "--sequence", "64")
# The output of each of three layers of 64 x 512 floats is saved, and what the last one returns.
VALUE_BYTES = 64 * 512 * 4
H100 = ("--hardware", "H100")


def test_named_hardware_as_json() -> None:
    result = run(*MODEL, *H100, "--batch", "16", "--budget", "min", "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["fits"] is True
    assert data["hardware"].startswith("NVIDIA H100")
    assert (data["batch"], data["sequence"], data["dtype"]) == (16, 64, "float32")
    assert data["peak_bytes"] < data["unmoved_peak_bytes"]
    moved = [
        value
        for graph in data["graphs"]
        for value in graph["values"]
        if value["decision"].startswith("move")
    ]
    assert moved
    assert {value["bytes"] for value in moved} == {16 * VALUE_BYTES}
    assert data["written_bytes"] == sum(value["bytes"] for value in moved)


def test_text_has_the_table_and_the_sums() -> None:
    result = run(*MODEL, *H100, "--batch", "16", "--budget", "min")
    assert result.exit_code == 0, result.output
    for words in ("move to nvme", "keep:", "read starts before", "fits into", "exposed"):
        assert words in result.stdout


def test_what_if_tries_budgets() -> None:
    result = run(*MODEL, *H100, "--batch", "64", "--what-if", "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["what_if"]
    assert [row["share"] for row in rows] == [1.0, 0.7, 0.5, 0.35]
    fitting = [row for row in rows if not row["error"]]
    assert len(fitting) >= 2
    for row in fitting:
        assert row["peak_bytes"] <= row["budget_bytes"]
    for row in rows:
        assert row["error"] == "" or row["lowest_peak_bytes"] > row["budget_bytes"]


def test_largest_batch_in_a_given_memory() -> None:
    result = run(*MODEL, *H100, "--largest", "--memory", "32MiB", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["largest_batch"]
    parameters = 4 * (512 * 512 + 512) * 4
    assert found["memory_budget_bytes"] == 32 * MIB - parameters
    assert found["moved"]["batch"] > found["unmoved"]["batch"] >= 1
    assert found["moved"]["peak_bytes"] <= found["memory_budget_bytes"]


def test_a_budget_that_is_missed_is_exit_code_1() -> None:
    result = run(*MODEL, *H100, "--batch", "64", "--budget", "1MiB")
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert "lowest" in line


def test_a_device_that_is_too_small_is_exit_code_1() -> None:
    result = run(*MODEL, *H100, "--batch", "64", "--memory", "1MiB", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["fits"] is False


def test_this_machine(spill_directory: Path) -> None:
    where = ("--directory", str(spill_directory))
    result = run(*MODEL, *where, "--batch", "16", "--budget", "min")
    assert result.exit_code == 0, result.output
    assert "move to nvme" in result.stdout
    assert "ioengine posix" in result.stdout
    data = json.loads(run(*MODEL, *where, "--batch", "16", "--budget", "min", "--json").stdout)
    assert data["moved_bytes"] % VALUE_BYTES == 0
    assert data["moved_bytes"] > 0
    assert "hardware" not in data


def test_wrong_use(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("speed = 1")
    check_usage_error(run("plan", "planned_models:missing"), "no callable 'missing'")
    check_usage_error(run("plan", "no_such_module:build"), "no_such_module")
    check_usage_error(run(*MODEL, "--hardware", "H1000"), "did you mean 'H100'")
    check_usage_error(run(*MODEL, "--hardware", str(bad)), "bad.toml", "speed")
    check_usage_error(run(*MODEL, "--hardware", str(tmp_path / "none.toml")), "No such file")
    check_usage_error(run(*MODEL, *H100, "--drive", "Gen9"), "Gen9")
    check_usage_error(run(*MODEL, *H100, "--dtype", "int3"), "int3", "bfloat16")
    check_usage_error(run(*MODEL, *H100, "--budget", "much"), "memory_budget='much'")
    check_usage_error(run("plan", "x:y", "--directory", str(tmp_path / "none")), "does not exist")
    fixed = ("plan", "planned_models:with_tensors", *H100)
    check_usage_error(run(*fixed, "--batch", "4"), "fixed")
    assert run(*MODEL, "--batch", "0").exit_code == 2
    for where in (H100, ()):
        tokens = run("plan", "planned_models:build_chain", "--sequence", "8", *where)
        check_usage_error(tokens, "its forward fails with RuntimeError", "shapes")
