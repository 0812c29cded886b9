"""Runs Python in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_python(
    *arguments: str | Path,
    environment: Mapping[str, str] = os.environ,
    folder: Path = ROOT,
    status: int = 0,
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in `folder`, without colours; its exit status must be `status`."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
        env={**environment, "COLUMNS": "150", "NO_COLOR": "1"},
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done
