"""Checks of a spill directory."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from fxoffload.cli.findings import Finding
from fxoffload.directories import check_directory, find_filesystem
from fxoffload.errors import ConfigError
from fxoffload.runtime.engines.spill_file import SpillFile
from fxoffload.sizes import format_bytes

LEAST_FREE_BYTES = 10 * 2**30


def check_spill_directory(path: Path) -> Iterator[Finding]:
    """The file system of `path`, direct I/O and free space; only a problem if it cannot be used."""
    subject = f"directory {path}"
    try:
        check_directory(path)
    except ConfigError as error:
        fact, _, remedy = str(error).partition("; ")
        yield Finding(subject, "problem", fact, remedy)
        return
    yield Finding(subject, "ok", f"{find_filesystem(path)}, can be written")
    yield check_direct_io(path)
    yield check_free_space(shutil.disk_usage(path).free)


def check_direct_io(path: Path) -> Finding:
    """Whether transfers bypass the page cache there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # The finding says the same.
        file = SpillFile(path)
    with closing(file):
        if file.direct:
            return Finding("direct I/O", "ok", f"works, aligned to {file.alignment} bytes")
    return Finding(
        "direct I/O",
        "warning",
        "the file system refuses O_DIRECT, so that values fill the page cache",
        "name a directory on a local disk with ext4 or xfs",
    )


def check_free_space(free_bytes: int) -> Finding:
    """Whether there is room for the values of a step."""
    fact = f"{format_bytes(free_bytes)} free"
    if free_bytes < LEAST_FREE_BYTES:
        remedy = "free space, or name another directory: a step needs what it moves"
        return Finding("free space", "warning", fact, remedy)
    return Finding("free space", "ok", fact)
