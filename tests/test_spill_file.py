"""The spill file: it has no name, is private and preallocated, and reports if it is buffered."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import tempfile
from pathlib import Path

import pytest

from fxoffload.errors import StoreFull
from fxoffload.runtime.engines import spill_file
from fxoffload.runtime.engines.spill_file import GROWTH_BYTES, SpillFile


def refuse_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.fcntl

    def fake(fd: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETFL and argument & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(fd, command, argument)

    monkeypatch.setattr(spill_file.fcntl, "fcntl", fake)


def refuse_tmpfile(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def fake(path: str, flags: int, *args: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, *args)

    monkeypatch.setattr(spill_file.os, "open", fake)


@pytest.fixture(params=[True, False])
def tmpfile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the system makes files that never have a name."""
    if not request.param:
        refuse_tmpfile(monkeypatch)
    return request.param


@pytest.mark.usefixtures("tmpfile")
def test_file_is_private_and_has_no_name(tmp_path: Path) -> None:
    file = SpillFile(tmp_path)
    try:
        status = os.fstat(file.fd)
        assert stat.S_IMODE(status.st_mode) == 0o600
        assert status.st_nlink == 0
        assert status.st_size == 0
        assert list(tmp_path.iterdir()) == []
        assert not os.get_inheritable(file.fd)
    finally:
        file.close()


def test_a_planted_symlink_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmpfile: bool
) -> None:
    """Somebody may have guessed the name that a file has for a moment."""
    victim, directory = tmp_path / "victim", tmp_path / "spill"
    victim.write_text("precious")
    directory.mkdir()
    planted = directory / "fxoffload-guessed"
    planted.symlink_to(victim)
    names = iter(["guessed", "other"])
    monkeypatch.setattr(tempfile, "_get_candidate_names", lambda: names)
    file = SpillFile(directory)
    try:
        os.pwrite(file.fd, mmap.mmap(-1, 4096), 0)
        assert not os.path.samestat(os.fstat(file.fd), victim.stat())
    finally:
        file.close()
    assert victim.read_text() == "precious"
    assert list(directory.iterdir()) == [planted]
    assert list(names) == (["guessed", "other"] if tmpfile else [])


def test_close_twice_and_no_descriptor_left(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    file = SpillFile(tmp_path)
    assert set(os.listdir("/proc/self/fd")) != before
    file.close()
    file.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_refused_direct_io_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_direct(monkeypatch)
    with pytest.warns(RuntimeWarning, match="refuses direct I/O") as caught:
        file = SpillFile(tmp_path)
    assert len(caught) == 1
    assert (file.direct, file.alignment) == (False, 1)
    os.pwrite(file.fd, b"abc", 5)
    assert os.pread(file.fd, 3, 5) == b"abc"
    file.close()


@pytest.mark.parametrize(("smallest", "expected"), [(512, 512), (4096, 4096), (8192, None)])
def test_alignment_is_the_smallest_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smallest: int, expected: int | None
) -> None:
    real = os.pwrite

    def fake(fd: int, data: memoryview, offset: int) -> int:
        if len(data) % smallest or offset % smallest:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(fd, data, offset)

    # Buffered underneath, so that the answer is the simulated one on any file system.
    monkeypatch.setattr(spill_file.fcntl, "fcntl", lambda *_: 0)
    monkeypatch.setattr(spill_file.os, "pwrite", fake)
    if expected is None:
        with pytest.warns(RuntimeWarning, match="refuses direct I/O"):
            file = SpillFile(tmp_path)
        assert (file.direct, file.alignment) == (False, 1)
    else:
        file = SpillFile(tmp_path)
        assert (file.direct, file.alignment) == (True, expected)
    file.close()


def test_other_errors_of_the_probe_are_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(spill_file.fcntl, "fcntl", lambda *_: 0)
    monkeypatch.setattr(spill_file.os, "pwrite", fake)
    with pytest.raises(OSError, match="Input/output error"):
        SpillFile(tmp_path)
    assert set(os.listdir("/proc/self/fd")) == before


def test_reserve_grows_in_steps_and_never_shrinks(tmp_path: Path) -> None:
    file = SpillFile(tmp_path)
    file.reserve(1)
    assert file.size_bytes == os.fstat(file.fd).st_size == GROWTH_BYTES
    assert os.fstat(file.fd).st_blocks * 512 >= GROWTH_BYTES
    file.reserve(GROWTH_BYTES)
    assert file.size_bytes == GROWTH_BYTES
    file.reserve(GROWTH_BYTES + 1)
    assert file.size_bytes == 2 * GROWTH_BYTES
    file.reserve(5)
    assert os.fstat(file.fd).st_size == 2 * GROWTH_BYTES
    file.close()


def test_too_little_space_names_everything(tmp_path: Path) -> None:
    file = SpillFile(tmp_path)
    with pytest.raises(StoreFull) as caught:
        file.reserve(2**60)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "needs 1048576.0 TiB" in message
    assert "are free" in message
    assert os.fstat(file.fd).st_size == 0
    file.close()


def test_space_that_vanishes_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = SpillFile(tmp_path)
    file.reserve(1)

    def fake(fd: int, offset: int, nbytes: int) -> None:
        os.ftruncate(fd, offset + nbytes // 2)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(spill_file.os, "posix_fallocate", fake)
    with pytest.raises(StoreFull):
        file.reserve(GROWTH_BYTES + 1)
    assert file.size_bytes == os.fstat(file.fd).st_size == GROWTH_BYTES
    file.close()


def test_file_system_without_preallocation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    file = SpillFile(tmp_path)
    monkeypatch.setattr(spill_file.os, "posix_fallocate", fake)
    file.reserve(10)
    assert file.size_bytes == os.fstat(file.fd).st_size == GROWTH_BYTES
    file.close()
