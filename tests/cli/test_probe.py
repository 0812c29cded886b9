"""The command probe: what it measures, what it prints, and wrong use."""

from __future__ import annotations

import ast
import json
import threading
from pathlib import Path

import pytest
from command_line import check_usage_error, run

import fxoffload
from fxoffload.cli import probe
from fxoffload.runtime.measurement import bandwidth, contention

SMALL = ("--rounds", "2", "--size", "64KiB", "--ioengine", "posix")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Short probes, and nothing that is known of an earlier one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(bandwidth, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(bandwidth, "PROBE_BYTES", 2**16)
    monkeypatch.setattr(contention, "ROUNDS", 2)
    monkeypatch.setattr(contention, "WINDOW_SECONDS", 0.01)


def test_json_has_both_loads_both_ways_and_options_to_paste(spill_directory: Path) -> None:
    result = run("probe", str(spill_directory), *SMALL, "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    (found,) = data["directories"]
    assert found["engine"].startswith("posix")
    assert found["reason"] == 'ioengine="posix" was asked for'
    assert found["alignment"] in (1, 512, 4096)
    assert [job["jobname"] for job in found["jobs"]] == ["alone", "beside compute"]
    for job in found["jobs"]:
        for way in ("write", "read"):
            assert job[way]["total_ios"] == 2 * bandwidth.PROBE_COUNT
            assert job[way]["io_bytes"] == 2 * bandwidth.PROBE_COUNT * 2**16
            assert job[way]["bw_bytes"] > 0
    assert data["plans_start_from"]["compute_seconds_per_byte_written"] > 0
    config = fxoffload.OffloadConfig.from_options(data["options"])
    assert config.directories == (spill_directory,)
    assert list(spill_directory.iterdir()) == []


def test_text_can_be_pasted(spill_directory: Path) -> None:
    result = run("probe", str(spill_directory), *SMALL)
    assert result.exit_code == 0, result.output
    last = result.stdout.strip().splitlines()[-1]
    options = ast.literal_eval(last.removeprefix("options="))
    assert options == {"directory": [str(spill_directory)], "ioengine": "posix"}
    assert "beside compute" in result.stdout


def test_only_the_second_load_computes(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy: list[bool] = []
    sample = probe.sample_transfers

    def look(*args: object, **options: object) -> object:
        busy.append(any(thread.name == "fxoffload-load" for thread in threading.enumerate()))
        return sample(*args, **options)

    monkeypatch.setattr(probe, "sample_transfers", look)
    assert run("probe", str(spill_directory), *SMALL).exit_code == 0
    assert busy == [False, True]


def test_wrong_use(tmp_path: Path, spill_directory: Path) -> None:
    missing = str(tmp_path / "missing")
    check_usage_error(run("probe", missing), missing, "does not exist")
    check_usage_error(run("probe", "/dev/shm"), "tmpfs", "disk")
    check_usage_error(run("probe", str(spill_directory), "--size", "big"), "size='big'")
    check_usage_error(run("probe", str(spill_directory), "--size", "2GiB"), "size='2GiB'", "1 GiB")
    check_usage_error(run("probe", str(spill_directory), str(spill_directory)), "twice")
    kvikio = run("probe", str(spill_directory), "--ioengine", "kvikio")
    if kvikio.exit_code:  # There is no GPU here.
        check_usage_error(kvikio, "kvikio", "posix")
    assert run("probe").exit_code == 2
    assert run("probe", str(spill_directory), "--ioengine", "fast").exit_code == 2
