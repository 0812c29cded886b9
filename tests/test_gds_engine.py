"""The engine with GPUDirect Storage, in a process that finds fake drivers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fake_cuda import environment_with_gds
from python_runs import run_python

from fxoffload.config import OffloadConfig
from fxoffload.errors import ConfigError
from fxoffload.runtime.engines import kvikio_engine
from fxoffload.runtime.measurement.choice import choose_engine

CASES = Path(__file__).with_name("gds_cases.py")


def test_cases_on_fake_drivers(tmp_path: Path) -> None:
    environment = environment_with_gds(tmp_path)
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider", CASES)
    done = run_python(*arguments, environment=environment)
    summary = done.stdout.splitlines()[-1]
    passed = re.match(r"(\d+) passed", summary)
    assert passed is not None, done.stdout
    assert int(passed[1]) > 30
    assert "skipped" not in summary


def test_it_needs_kvikio(spill_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvikio_engine, "DRIVER_LIBRARY", "libnone.so.1")
    with pytest.raises(ConfigError, match=r'ioengine="gds": no CUDA driver'):
        choose_engine(OffloadConfig(directory=spill_directory, ioengine="gds"))
