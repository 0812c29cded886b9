"""Find the default directory for spill files, and check that a directory can hold one."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fxoffload.errors import ConfigError

DIRECTORY_VARIABLE = "FXOFFLOAD_DIRECTORY"

_MEMORY_FILESYSTEMS = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})


def check_directory(path: Path) -> None:
    """Raise ConfigError unless `path` is a writable directory on a disk, not in memory."""
    if not path.exists():
        raise ConfigError(f"directory={str(path)!r} does not exist; create it or name another")
    if not path.is_dir():
        raise ConfigError(f"directory={str(path)!r} is not a directory; name a directory")
    filesystem = find_filesystem(path)
    if filesystem in _MEMORY_FILESYSTEMS:
        raise ConfigError(
            f"directory={str(path)!r} is on {filesystem}, which is memory; name a directory on "
            'a disk, or pass ioengine="memory" to keep the values in host memory on purpose'
        )
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(
            f"directory={str(path)!r} cannot be written ({error.strerror}); "
            "change its permissions or name another"
        ) from None


def find_filesystem(path: Path) -> str:
    """The type of the file system that holds `path` ("ext4", "tmpfs", ...), from mountinfo."""
    target = path.resolve()
    best, found = -1, "unknown"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, tail = line.partition(" - ")
        # mountinfo writes space, tab, newline and backslash of a path in octal.
        mount = Path(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields.split()[4]))
        if target.is_relative_to(mount) and len(mount.parts) >= best:
            best, found = len(mount.parts), tail.split()[0]
    return found


def read_directories() -> tuple[Path, ...]:
    """The directories that `$FXOFFLOAD_DIRECTORY` names, as `/a:/b`; none if it is empty or unset.

    Raises ConfigError for an empty path, and for a directory that is named twice.
    """
    text = os.environ.get(DIRECTORY_VARIABLE)
    if not text:
        return ()
    paths = text.split(os.pathsep)
    if not all(paths):
        raise ConfigError(
            f"{DIRECTORY_VARIABLE}={text!r} has an empty path; "
            f"set one path, or several with {os.pathsep!r} between them"
        )
    try:
        return tuple(Path(path) for path in normalise_directories(paths) or ())
    except ConfigError as error:
        raise ConfigError(f"{error}; set by {DIRECTORY_VARIABLE}") from None


def default_directory() -> Path:
    """The first per-user directory on a real disk, which may be created.

    Raises ConfigError if there is none.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    candidates = (Path(cache) / "fxoffload", Path("/var/tmp") / f"fxoffload-{os.getuid()}")
    reasons: list[str] = []
    for path in candidates:
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_directory(path)
        except (ConfigError, OSError) as error:
            reasons.append(str(error))
            continue
        if path.stat().st_uid == os.getuid():
            return path
        reasons.append(f"{path} belongs to another user")
    raise ConfigError(
        f"no directory for the spill file ({'; '.join(reasons)}); "
        f"pass directory=... or set ${DIRECTORY_VARIABLE}"
    )


def normalise_directories(value: Any) -> tuple[str, ...] | None:
    """Absolute paths of one or more directories, with "~" expanded; None for None.

    Raises ConfigError for anything else, and for a directory that is named twice.
    """
    if value is None:
        return None
    if isinstance(value, str | os.PathLike):
        value = (value,)
    if not isinstance(value, Sequence) or not all(
        isinstance(path, str | os.PathLike) for path in value
    ):
        raise ConfigError(f"directory={value!r} is not a path or a list of paths")
    paths = tuple(os.path.abspath(os.path.expanduser(os.fspath(path))) for path in value)
    if not paths:
        raise ConfigError("directory=[] names no directory; pass a path or leave it out")
    if len(set(paths)) != len(paths):
        raise ConfigError(f"directory={list(paths)} names a directory twice")
    return paths
