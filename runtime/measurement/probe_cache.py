"""Keep measured speeds on disk, so that every process on a machine plans with the same numbers.

The file is `$XDG_CACHE_HOME/fxoffload/speeds.json` (`~/.cache/...` without the variable); delete it
to measure again. Entries older than MAX_AGE_SECONDS are measured again: drives fill up, and kernels
and drivers change. If the file cannot be read or written, each process measures for itself.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

LOCK_SECONDS = 120.0  # Longer than all probes of a machine together.
POLL_SECONDS = 0.02
MAX_AGE_SECONDS = 7 * 86400.0

# Numbers that this process measured and could not write to disk: all its graphs plan by them.
_own: dict[tuple[Path, str], tuple[float, float]] = {}


def cache_path() -> Path:
    """The path of the file with the speeds that this user's processes have measured."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "fxoffload" / "speeds.json"


def recall_pair(key: str, measure: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """The two numbers kept under `key`; if there are none, or old ones, `measure()`, which is kept.

    If several processes call this at once, one measures and the others wait for it, for at most
    LOCK_SECONDS: simultaneous measurements would disturb each other.
    """
    path = cache_path()
    try:
        fd = _open_locked(path)
    except OSError as error:
        log.info("%s cannot be used, speeds are measured by each process: %s", path, error)
        return _recall_own(path, key, measure)
    try:
        known = _read(fd)
        if key in known:
            found = known[key][0], known[key][1]
        else:
            found = _recall_own(path, key, measure)
            known[key] = *found, time.time()
            try:
                _write(fd, known)
            except OSError as error:
                log.info("%s cannot be written: %s", path, error)
            else:
                del _own[path, key]
        return found
    finally:
        # Unlock explicitly: a child that was forked meanwhile also has the descriptor, so closing
        # it here would not unlock the file.
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def _recall_own(
    path: Path, key: str, measure: Callable[[], tuple[float, float]]
) -> tuple[float, float]:
    found = _own.get((path, key))
    if found is None:
        found = _own[path, key] = measure()
    return found


def _open_locked(path: Path) -> int:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + LOCK_SECONDS
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)
            else:
                return fd
    except BaseException:
        os.close(fd)
        raise


def _read(fd: int) -> dict[str, tuple[float, float, float]]:
    """The well-formed entries of the file that are not too old: two numbers and when, by time.time.

    A process may have been killed while it wrote.
    """
    try:
        data: Any = json.loads(os.pread(fd, os.fstat(fd).st_size, 0))
    except (OSError, ValueError):
        return {}
    if not isinstance(data, dict):
        return {}
    oldest = time.time() - MAX_AGE_SECONDS
    return {
        key: (entry[0], entry[1], entry[2])
        for key, entry in data.items()
        if _is_entry(entry) and entry[2] > oldest
    }


def _write(fd: int, known: dict[str, tuple[float, float, float]]) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps(known, indent=1, sort_keys=True).encode(), 0)


def _is_entry(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(item, int | float) and 0 < item < float("inf") for item in value)
    )
