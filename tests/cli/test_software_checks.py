"""Checks of software, on this machine and on others that are made up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fxoffload.cli import software_checks
from fxoffload.cli.software_checks import (
    check_compiler,
    check_cuda,
    check_kvikio,
    check_python,
    check_software,
    check_torch,
    check_triton,
)
from fxoffload.runtime.engines.kvikio_engine import Obstacle


def test_this_machine_has_what_it_tests_with() -> None:
    states = {finding.subject: finding.state for finding in check_software()}
    assert states["python"] == states["torch"] == states["fxoffload"] == "ok"


def test_old_versions_are_problems() -> None:
    assert check_python((3, 10)).state == "problem"
    assert check_python((3, 11)).state == "ok"
    assert check_torch("2.10.1+cpu").state == "problem"
    assert check_torch("2.11.0").state == "ok"
    assert check_torch("3.0.0").state == "ok"


def test_triton_is_needed_only_for_a_gpu() -> None:
    assert check_triton(None, has_gpu=False).state == "ok"
    missing = check_triton(None, has_gpu=True)
    assert (missing.state, missing.remedy) == ("problem", "pip install triton")
    assert check_triton("3.5", has_gpu=True).fact == "3.5"


def test_compiler(tmp_path: Path) -> None:
    missing = check_compiler("no-such-compiler")
    assert missing.state == "problem"
    assert "CXX" in missing.remedy
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    assert check_compiler(str(broken)).state == "problem"
    broken.write_text("#!/bin/sh\necho 'c++ 12.2'\n")
    found = check_compiler(str(broken))
    assert (found.state, found.fact) == ("ok", f"c++ 12.2 ({broken})")


@pytest.mark.parametrize(
    ("built", "driver", "state"),
    [(None, False, "ok"), (None, True, "warning"), ("13.0", False, "warning")],
)
def test_a_machine_without_a_usable_gpu(
    monkeypatch: pytest.MonkeyPatch, built: str | None, driver: bool, state: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(software_checks, "_has_library", lambda _: driver)
    assert check_cuda().state == state


def test_kvikio_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software_checks, "find_obstacle", lambda: Obstacle("none", "get it"))
    assert check_kvikio(has_gpu=False).state == "ok"
    missed = check_kvikio(has_gpu=True)
    assert (missed.state, missed.remedy) == ("warning", "get it")


@pytest.mark.parametrize("lacking", [Obstacle("no nvidia-fs", "install it"), None])
def test_gpudirect_storage_is_told(
    monkeypatch: pytest.MonkeyPatch, lacking: Obstacle | None
) -> None:
    monkeypatch.setattr(software_checks, "find_obstacle", lambda: None)
    monkeypatch.setattr(software_checks, "find_gds_obstacle", lambda: lacking)
    told = check_kvikio(has_gpu=True)
    assert told.state == "ok"
    assert (lacking.fact if lacking else 'ioengine "gds"') in told.fact
