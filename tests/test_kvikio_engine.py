"""The kvikio engine: obstacles to its use, and its tests with the real library.

Those run in a separate process: a driver library stays loaded, and would change the choice of
"auto" in other tests.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fake_cuda import environment_with_driver
from python_runs import run_python

import fxoffload
from fxoffload.config import OffloadConfig
from fxoffload.errors import ConfigError
from fxoffload.runtime.engines import kvikio_engine
from fxoffload.runtime.engines.kvikio_engine import find_obstacle
from fxoffload.runtime.measurement.choice import choose_engine, open_engine

CASES = Path(__file__).with_name("kvikio_cases.py")


def test_cases_on_a_driver_without_a_gpu(tmp_path: Path) -> None:
    environment = environment_with_driver(tmp_path)
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider", CASES)
    done = run_python(*arguments, environment=environment)
    summary = done.stdout.splitlines()[-1]
    passed = re.match(r"(\d+) passed", summary)
    assert passed is not None, summary
    assert int(passed[1]) > 30
    assert "skipped" not in summary


@pytest.mark.parametrize("missing", ["driver", "package"])
def test_obstacles_are_told_with_a_remedy(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    if missing == "driver":
        monkeypatch.setattr(kvikio_engine, "DRIVER_LIBRARY", "libnone.so.1")
        fact, remedy = r"no CUDA driver \(libnone.so.1\)", "install the NVIDIA driver"
    else:
        monkeypatch.setattr(kvikio_engine.importlib.util, "find_spec", lambda _: None)
        fact, remedy = "the package kvikio is not installed", r'pip install "fxoffload\[kvikio\]"'
    options = {"directory": spill_directory, "ioengine": "kvikio"}
    expected = f'ioengine="kvikio": {fact}; {remedy}.*, or pass "posix" or "auto"'
    with pytest.raises(ConfigError, match=expected):
        fxoffload.compile(lambda x: x, **options)
    obstacle = find_obstacle()
    assert obstacle is not None
    choice = choose_engine(OffloadConfig(directory=spill_directory))
    assert (choice.kind, choice.reason) == ("posix", f"kvikio cannot be used: {obstacle.fact}")


def test_auto_logs_why(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kvikio_engine, "DRIVER_LIBRARY", "libnone.so.1")
    with caplog.at_level("INFO", "fxoffload.runtime.measurement.choice"):
        engine = open_engine(OffloadConfig(directory=spill_directory))
    assert caplog.messages == [
        f"ioengine {engine.name}; kvikio cannot be used: no CUDA driver (libnone.so.1)"
    ]
    assert engine.name.startswith("posix ")
    engine.close()
