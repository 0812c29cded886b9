"""An engine around another one that knows the digest of what it wrote, and compares what it reads.

    write    the inner engine writes, then the digest is taken, in the thread that ended the write
    read     the inner engine reads, then the digest is compared, in the thread that ended the read

The library releases the interpreter lock while it works, at more bytes a second than any drive.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from fxoffload.errors import ConfigError
from fxoffload.runtime.engines.ioengine import FollowingFuture, IOEngine, IOFuture


class DigestMismatch(OSError):
    """Bytes came back other than they were written; the digests are those of xxh3_64."""

    def __init__(self, written: int, found: int) -> None:
        super().__init__(
            errno.EIO, f"digest {found:016x} of what came back, {written:016x} of what was written"
        )
        self.written, self.found = written, found


class CheckedEngine:
    """`inner` with digests of whole slots; the bytes of every view must be in host memory.

    A read whose digest differs ends with DigestMismatch. Raises ConfigError without the library.
    """

    def __init__(self, inner: IOEngine) -> None:
        self._digest = find_digest()
        self._inner = inner
        self._written: dict[int, int] = {}
        self.alignment = inner.alignment
        self.allocate, self.reserve, self.describe = inner.allocate, inner.reserve, inner.describe
        self.close, self.abandon = inner.close, inner.abandon

    @property
    def name(self) -> str:
        """That of the inner engine."""
        return self._inner.name

    def free(self, offset: int) -> None:
        """Take back the slot at `offset`."""
        self._written.pop(offset, None)
        self._inner.free(offset)

    def write(self, view: memoryview, offset: int) -> IOFuture:
        """Start to write `view`, and then to note its digest."""

        def note(view: memoryview) -> None:
            self._written[offset] = self._digest(view)

        return CheckedFuture(self._inner.write(view, offset), view, note)

    def read(self, view: memoryview, offset: int) -> IOFuture:
        """Start to fill `view`, and then to compare its digest."""

        def compare(view: memoryview) -> None:
            written, found = self._written[offset], self._digest(view)
            if found != written:
                raise DigestMismatch(written, found)

        return CheckedFuture(self._inner.read(view, offset), view, compare)


class CheckedFuture(FollowingFuture):
    """A transfer that ends when `inner` has ended and `check(view)` has returned."""

    def __init__(
        self, inner: IOFuture, view: memoryview, check: Callable[[memoryview], None]
    ) -> None:
        super().__init__()
        # Let go of at the end: a cancelled call may lie in an executor's queue for long.
        self._view: memoryview | None = view
        self._check = check
        self.follow(inner)

    def conclude(self, outcome: int | Exception | None) -> int | Exception | None:
        """`outcome`, once the check has accepted a whole transfer."""
        view, self._view = self._view, None
        assert view is not None
        if outcome == len(view):
            self._check(view)
        return outcome


def find_digest() -> Callable[[memoryview], int]:
    """The digest of bytes as an int; raises ConfigError where the library is missing."""
    try:
        import xxhash
    except ImportError:
        raise ConfigError(
            'checksum=True needs the package xxhash; pip install "fxoffload[checksum]"'
        ) from None
    return xxhash.xxh3_64_intdigest
