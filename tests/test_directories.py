"""Directories for spill files: what can hold one, and which one is the default."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from fxoffload import directories as directories_module
from fxoffload.config import OffloadConfig
from fxoffload.directories import (
    DIRECTORY_VARIABLE,
    check_directory,
    default_directory,
    find_filesystem,
    read_directories,
)
from fxoffload.errors import ConfigError

SHARED_MEMORY = Path("/dev/shm")


def test_good_directory(spill_directory: Path) -> None:
    check_directory(spill_directory)
    assert list(spill_directory.iterdir()) == []


def test_missing_directory(spill_directory: Path) -> None:
    path = spill_directory / "missing"
    with pytest.raises(ConfigError, match=f"directory='{path}' does not exist; create it"):
        check_directory(path)


def test_file_as_directory(spill_directory: Path) -> None:
    path = spill_directory / "file"
    path.touch()
    with pytest.raises(ConfigError, match=f"directory='{path}' is not a directory"):
        check_directory(path)


def test_tmpfs_is_refused() -> None:
    if find_filesystem(SHARED_MEMORY) != "tmpfs":
        pytest.skip("/dev/shm is no tmpfs on this machine")
    with pytest.raises(ConfigError, match=r"'/dev/shm' is on tmpfs, which is memory") as caught:
        check_directory(SHARED_MEMORY)
    assert 'ioengine="memory"' in str(caught.value)


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.EACCES, "Permission denied"), (errno.EROFS, "Read-only file system")],
)
def test_unwritable_directory(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    def refuse(**_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(ConfigError, match=rf"cannot be written \({words}\); change its perm"):
        check_directory(spill_directory)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_directory_without_permission(spill_directory: Path) -> None:
    spill_directory.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written"):
        check_directory(spill_directory)
    spill_directory.chmod(0o700)


def test_read_only_pseudo_filesystem() -> None:
    """A directory that not even root can write to."""
    with pytest.raises(ConfigError, match="directory='/proc' cannot be written"):
        check_directory(Path("/proc"))


def test_filesystem_of_a_mount_with_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """mountinfo escapes; the longest mount that holds the path counts, the last of equals."""
    text = (
        "1 0 8:1 / / rw - ext4 /dev/sda rw\n"
        "2 1 8:2 / /fast\\040disk rw shared:1 - xfs /dev/sdb rw\n"
        "3 2 8:3 / /fast\\040disk/memory rw - tmpfs none rw\n"
        "4 1 8:4 / /twice rw - ext4 /dev/sdc rw\n"
        "5 1 8:5 / /twice rw - btrfs /dev/sdd rw\n"
    )
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    assert find_filesystem(Path("/somewhere")) == "ext4"
    assert find_filesystem(Path("/fast disk/x")) == "xfs"
    assert find_filesystem(Path("/fast disk/memory/x")) == "tmpfs"
    assert find_filesystem(Path("/fast disks")) == "ext4"
    assert find_filesystem(Path("/twice/x")) == "btrfs"


def test_variable_names_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DIRECTORY_VARIABLE, "/data/named")
    assert read_directories() == (Path("/data/named"),)
    assert OffloadConfig().directories == (Path("/data/named"),)
    assert OffloadConfig(directory="/other").directories == (Path("/other"),)


@pytest.fixture
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DIRECTORY_VARIABLE, raising=False)


def test_cache_of_the_user(
    no_variable: None, spill_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(spill_directory / "cache"))
    path = default_directory()
    assert path == spill_directory / "cache" / "fxoffload"
    assert path.stat().st_mode & 0o777 == 0o700
    assert default_directory() == path


def test_home_without_a_cache_variable(
    no_variable: None, spill_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(spill_directory))
    assert default_directory() == spill_directory / ".cache" / "fxoffload"


def test_unusable_cache_falls_to_the_next(
    no_variable: None, spill_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file where the cache should be; then a per-user directory in /var/tmp."""
    (spill_directory / "cache").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(spill_directory / "cache"))
    fallback = Path(f"/var/tmp/fxoffload-{os.getuid()}")
    made: list[Path] = []
    mkdir, stat = Path.mkdir, Path.stat

    def record(self: Path, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        if self != fallback:
            mkdir(self, *args, **kwargs)

    def find_owner(self: Path, **options: Any) -> os.stat_result:
        return stat(spill_directory if self == fallback else self, **options)

    monkeypatch.setattr(directories_module, "check_directory", lambda _: None)
    monkeypatch.setattr(Path, "mkdir", record)
    monkeypatch.setattr(Path, "stat", find_owner)
    assert default_directory() == fallback
    assert made == [spill_directory / "cache" / "fxoffload", fallback]


def make_recorder(mkdir: Any, inside: Path) -> Any:
    """Path.mkdir that makes nothing outside of `inside`."""

    def make(self: Path, *args: Any, **kwargs: Any) -> None:
        if self.is_relative_to(inside):
            mkdir(self, *args, **kwargs)

    return make


def test_no_directory_at_all(no_variable: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise ConfigError(f"{path} is no good")

    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)
    monkeypatch.setattr(directories_module, "check_directory", refuse)
    with pytest.raises(ConfigError, match="no directory for the spill file") as caught:
        default_directory()
    message = str(caught.value)
    assert message.count("is no good") == 2
    assert f"set ${DIRECTORY_VARIABLE}" in message


def test_directory_of_another_user_is_not_taken(
    no_variable: None, spill_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(spill_directory))
    monkeypatch.setattr(Path, "mkdir", make_recorder(Path.mkdir, spill_directory))
    monkeypatch.setattr(directories_module, "check_directory", lambda _: None)
    monkeypatch.setattr(Path, "stat", lambda self, **_: os.stat(spill_directory))
    monkeypatch.setattr(os, "getuid", lambda: os.stat(spill_directory).st_uid + 1)
    with pytest.raises(ConfigError, match="belongs to another user"):
        default_directory()


def test_relative_directories_are_resolved_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/usr")
    monkeypatch.setenv("HOME", "/home/someone")
    config = OffloadConfig(directory=["spill", "~/spill"])
    monkeypatch.chdir("/")
    assert config.directories == (Path("/usr/spill"), Path("/home/someone/spill"))


@pytest.mark.parametrize(
    ("directory", "words"),
    [
        ([], "names no directory"),
        (["/a", "/b", "/a"], "names a directory twice"),
        (["/a", "/b/../a"], "names a directory twice"),
        (3, "is not a path or a list of paths"),
        (["/a", 3], "is not a path or a list of paths"),
        ({"/a": "/b"}, "is not a path or a list of paths"),
        (b"/a", "is not a path or a list of paths"),
    ],
)
def test_bad_directories(directory: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        OffloadConfig(directory=directory)
