"""The entry point: as a module, and where typer is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fxoffload.cli.main import main


def test_module_runs_doctor(spill_directory: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "fxoffload", "doctor", "--json", "--directory", spill_directory],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stderr == ""
    data = json.loads(run.stdout)
    assert run.returncode == (1 if data["problems"] else 0)
    assert "torch" in {finding["subject"] for finding in data["findings"]}


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_missing_package_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str
) -> None:
    for name in list(sys.modules):
        if name.startswith("fxoffload.cli.") and name != "fxoffload.cli.main":
            monkeypatch.delitem(sys.modules, name)
    for name in [each for each in sys.modules if each.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Missing(package), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert package in line
    assert 'pip install "fxoffload[cli]"' in line


class _Missing:
    """Finds no module of one package, as if it were not installed."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, *_: object) -> None:
        if name.split(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_library_does_not_import_the_command_line() -> None:
    code = (
        "import sys, fxoffload; print([m for m in ('typer', 'fxoffload.cli') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
