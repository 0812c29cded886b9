"""An unlinked file for offloaded bytes: direct I/O if it works, and preallocated space."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import tempfile
import warnings
from pathlib import Path

from fxoffload.errors import StoreFull
from fxoffload.sizes import format_bytes

GROWTH_BYTES = 64 * 2**20
_ALIGNMENTS = (512, 4096)
# The errors of kernels and file systems without O_TMPFILE.
_NO_TMPFILE = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT})
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_FALLOCATE = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})


class SpillFile:
    """A file without a name in `directory`: the kernel frees it when the process ends.

    direct: whether transfers bypass the page cache; then memory addresses, offsets and lengths must
    be multiples of `alignment`, which is 1 for a buffered file. size_bytes: the preallocated size.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.size_bytes = 0
        self.fd = _open_unlinked(directory)
        try:
            alignment = _enable_direct(self.fd)
            os.ftruncate(self.fd, 0)
            self.direct = alignment is not None
            self.alignment = alignment or 1
            if alignment is None:
                warnings.warn(
                    f"{directory}: the file system refuses direct I/O, so the spill file is "
                    "buffered and fills the page cache; name a directory on a local disk",
                    RuntimeWarning,
                    stacklevel=2,
                )
        except BaseException:
            os.close(self.fd)
            raise

    @property
    def room_bytes(self) -> int:
        """The size up to which the file can grow, less GROWTH_BYTES that are left to others."""
        return self.size_bytes + max(0, self._find_free_bytes() - GROWTH_BYTES)

    def reserve(self, end_bytes: int) -> None:
        """Preallocate at least `end_bytes`, in steps of GROWTH_BYTES; never shrinks.

        If the file system has too little space, raises StoreFull and leaves the file as it was.
        """
        if end_bytes <= self.size_bytes:
            return
        free_bytes = self._find_free_bytes()
        target = -(-end_bytes // GROWTH_BYTES) * GROWTH_BYTES
        if target - self.size_bytes > free_bytes:
            target = end_bytes
        if target - self.size_bytes > free_bytes:
            raise self._full(end_bytes, free_bytes)
        try:
            os.posix_fallocate(self.fd, self.size_bytes, target - self.size_bytes)
        except OSError as error:
            if error.errno in _NO_SPACE:
                # A failed preallocation may have allocated a part of the space.
                os.ftruncate(self.fd, self.size_bytes)
                raise self._full(end_bytes, self._find_free_bytes()) from error
            if error.errno not in _NO_FALLOCATE:
                raise
            os.ftruncate(self.fd, target)
        self.size_bytes = target

    def close(self) -> None:
        """Close the file, which frees its space. A second call does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _find_free_bytes(self) -> int:
        status = os.fstatvfs(self.fd)
        return status.f_bavail * status.f_frsize

    def _full(self, end_bytes: int, free_bytes: int) -> StoreFull:
        return StoreFull(
            f"{self.directory}: the spill file needs {format_bytes(end_bytes)} and holds "
            f"{format_bytes(self.size_bytes)}, {format_bytes(free_bytes)} are free; "
            "free disk space, add a directory or raise memory_budget"
        )


def _open_unlinked(directory: Path) -> int:
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
    fd, path = tempfile.mkstemp(prefix="fxoffload-", dir=directory)
    try:
        os.unlink(path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _enable_direct(fd: int) -> int | None:
    """Turn on O_DIRECT and return the smallest alignment that works.

    If none works, turn O_DIRECT off and return None.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None
    for alignment in _ALIGNMENTS:
        if _probe_direct(fd, alignment):
            return alignment
    fcntl.fcntl(fd, fcntl.F_SETFL, flags)
    return None


def _probe_direct(fd: int, alignment: int) -> bool:
    """Whether a block can be written and read at an address and offset of exactly `alignment`."""
    # An anonymous map is page-aligned, so its block 1 is aligned to `alignment`, not to more.
    with contextlib.closing(mmap.mmap(-1, 4 * alignment)) as memory, memoryview(memory) as view:
        out, back = view[alignment : 2 * alignment], view[3 * alignment :]
        with out, back:
            out[:] = os.urandom(alignment)
            try:
                written = os.pwrite(fd, out, alignment)
                read = os.preadv(fd, [back], alignment)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                return False
            return written == read == alignment and out == back
