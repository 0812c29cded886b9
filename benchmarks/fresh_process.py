"""Runs a script in a process of its own, so that its peak memory is its own too.

The parent hands settings over as JSON in the first argument; the child answers in JSON lines.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fxoffload import OffloadError

# glibc keeps freed blocks in its heap, where they stay resident below any live one: a peak RSS then
# tells more of that than of what is alive. With this every block above 1 MiB goes back to the
# system when it is freed. That takes time, so it is for processes whose steps are not timed.
RETURN_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
# As CUDA's allocator does: what is freed stays for the next step. By itself glibc maps every block
# of 32 MiB and more anew, and the system clears its pages: some code then seems slower than other
# by how often it happens to reuse a buffer. With this no step asks the system for memory.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
_ERROR = "error"


class ChildFailed(Exception):
    """The child ended without a result; the message is what it said last."""


def run_fresh(
    script: Path, settings: Mapping[str, Any], *, environment: Mapping[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield each record that `script` reports, as it comes; raises ChildFailed at a failure."""
    command = [sys.executable, str(script), json.dumps(settings)]
    variables = {**os.environ, **(environment or {})}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=variables
        ) as child,
    ):
        assert child.stdout is not None
        try:
            for line in child.stdout:
                if not line.startswith("{"):
                    continue  # Printed by a library.
                record = json.loads(line)
                if _ERROR in record:
                    raise ChildFailed(record[_ERROR])
                yield record
        except BaseException:
            child.kill()
            raise
        if child.wait() != 0:
            errors.seek(0)
            last = "".join(errors.readlines()[-30:])
            raise ChildFailed(f"{script.name} ended with status {child.returncode}:\n{last}")


def run_child(work: Callable[[dict[str, Any]], None]) -> None:
    """In the child: call `work(settings)`; what fxoffload refuses goes to the parent in words."""
    try:
        work(json.loads(sys.argv[1]))
    except OffloadError as error:
        report({_ERROR: f"{type(error).__name__}: {error}"})
        sys.exit(1)


def report(record: Mapping[str, Any]) -> None:
    """In the child: hand `record` to the parent."""
    print(json.dumps(record), flush=True)
