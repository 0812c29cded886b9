"""Runs commands one after the other, each with a time limit, and writes their records to a file.

A record is a line of output that is a JSON object, or the line of a test in the output of pytest
-v. The JSON file is replaced after each record.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TAIL_LINES = 1000
CLOSING_SECONDS = 12.0  # Of a section: Python and torch before it looks, and its last steps.
_OUTCOME = re.compile(r"^(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)\b")


@dataclass(frozen=True, slots=True)
class Section:
    """Arguments for Python, run in the repository; with less than `least_seconds` left: skipped."""

    name: str
    command: tuple[str, ...]
    limit_seconds: float
    least_seconds: float = 10.0


class Results:
    """The JSON file: facts, then one record for each section, written again at each change.

    sections: by name, status ("running", "ok", "failed", "skipped"), seconds, records, errors.
    kept: those of the file that stay until they are measured again.
    """

    def __init__(
        self, path: Path, facts: dict[str, Any], kept: Mapping[str, dict[str, Any]] | None = None
    ) -> None:
        self._path = path
        self._facts = facts
        self.sections: dict[str, dict[str, Any]] = dict(kept or {})
        path.parent.mkdir(parents=True, exist_ok=True)
        self.write()

    def skip(self, name: str, why: str) -> None:
        """Say why a section does not run; what was measured of it before stays."""
        if self.sections.get(name, {}).get("status") != "ok":
            self.sections[name] = {"status": "skipped", "why": why}
            self.write()

    def write(self, *, complete: bool = False) -> None:
        """Replace the file in one step."""
        record = {**self._facts, "complete": complete, "sections": self.sections}
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=1) + "\n")
        partial.replace(self._path)


def run_section(
    section: Section, results: Results, environment: Mapping[str, str], limit_seconds: float
) -> None:
    """Run one section; what it prints goes to the file line by line."""
    records: list[dict[str, Any]] = []
    done: dict[str, Any] = {"status": "running", "command": section.command, "records": records}
    results.sections[section.name] = done
    results.write()
    start = time.monotonic()
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    with subprocess.Popen(
        [sys.executable, *section.command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=ROOT,
        # A section that knows its time leaves out what does not fit, and is not killed.
        env={**environment, "SECTION_SECONDS": str(limit_seconds - CLOSING_SECONDS)},
        start_new_session=True,
    ) as child:
        # A timer, as a child may hang without output. It kills the group of the child, as compilers
        # that the child has started hold the pipe open.
        timer = threading.Timer(limit_seconds, os.killpg, (child.pid, signal.SIGKILL))
        timer.start()
        assert child.stdout is not None
        for line in child.stdout:
            record = read_record(line)
            if record is None:
                tail.append(line.rstrip())
            else:
                records.append(record)
                results.write()
        status = child.wait()
        late = [] if timer.is_alive() else [f"killed after {limit_seconds:.0f} s"]
        timer.cancel()
    done["seconds"] = time.monotonic() - start
    errors = [record["error"] for record in records if "error" in record]
    done["status"] = "ok" if status == 0 and records and not errors else "failed"
    if done["status"] == "failed":
        done |= {"errors": [*errors, *late, f"exit status {status}"], "output": [*tail]}
    results.write()


def read_record(line: str) -> dict[str, Any] | None:
    """The record of a line: a JSON object, or the outcome of a test; None for other lines."""
    if line.startswith("{"):
        try:
            return json.loads(line)
        except ValueError:  # A line that a library printed.
            return None
    outcome = _OUTCOME.match(line)
    return {"test": outcome[1], "outcome": outcome[2].lower()} if outcome else None


@contextmanager
def link_packages(folder: Path) -> Generator[dict[str, str]]:
    """The environment of the children: the package as it would be installed, as links."""
    with tempfile.TemporaryDirectory(dir=folder.resolve(), prefix="gpu-suite-") as tree:
        package = Path(tree) / "fxoffload"
        package.mkdir()
        for path in (*(ROOT / "fxoffload").iterdir(), ROOT / "passes", ROOT / "runtime"):
            (package / path.name).symlink_to(path)
        paths = [tree, str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        # One cache for all, as graphs that return are compiled once; empty, to know what ran.
        yield {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            # The folder fxoffload of the repository is not the package: see CONTRIBUTING.
            "PYTHONSAFEPATH": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(Path(tree) / "inductor"),
        }
