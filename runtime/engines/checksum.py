"""An engine that wraps another one, digests what it writes, and verifies what it reads.

    write    the inner engine writes, then the digest is taken, in the thread that ended the write
    read     the inner engine reads, then the digest is compared, in the thread that ended the read

xxhash releases the interpreter lock while it computes a digest, and is faster than any drive.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from fxoffload.errors import ConfigError
from fxoffload.runtime.engines.future import FollowingFuture
from fxoffload.runtime.engines.ioengine import IOEngine, IOFuture
from fxoffload.runtime.engines.pieces import PIECE_BYTES, find_pieces


class DigestMismatch(OSError):
    """A read returned other bytes than were written.

    written, found: the xxh3_64 digests of the written and of the read bytes.
    """

    def __init__(self, written: int, found: int) -> None:
        super().__init__(
            errno.EIO, f"digest {found:016x} of what came back, {written:016x} of what was written"
        )
        self.written, self.found = written, found


class CheckedEngine:
    """`inner` with a digest of each write; all bytes go through host memory, for that.

    A slot is written as a whole or in pieces of `piece_bytes`, and read in the same way. A read
    whose digest differs ends with DigestMismatch. Raises ConfigError if xxhash is missing.
    """

    move_device = None

    def __init__(self, inner: IOEngine, piece_bytes: int = PIECE_BYTES) -> None:
        self._digest = find_digest()
        self._inner = inner
        self._piece_bytes = piece_bytes
        self._sizes: dict[int, int] = {}  # Of the slots, by offset.
        self._written: dict[int, int] = {}  # Digests, by the offset of a write.
        self.alignment = inner.alignment
        self.reserve, self.describe = inner.reserve, inner.describe
        self.close, self.abandon = inner.close, inner.abandon

    @property
    def name(self) -> str:
        """The name of the inner engine."""
        return self._inner.name

    def allocate(self, nbytes: int) -> int:
        """Allocate a slot of `nbytes` and return its offset; raises StoreFull without room."""
        offset = self._inner.allocate(nbytes)
        self._sizes[offset] = nbytes
        return offset

    def free(self, offset: int) -> None:
        """Free the slot at `offset`, and forget its digests."""
        for piece in find_pieces(self._sizes.pop(offset), self._piece_bytes):
            self._written.pop(offset + piece.start, None)
        self._inner.free(offset)

    def write(self, view: memoryview, offset: int) -> IOFuture:
        """Start to write `view`; its digest is recorded when the write has ended."""

        def note(view: memoryview) -> None:
            self._written[offset] = self._digest(view)

        return CheckedFuture(self._inner.write(view, offset), view, note)

    def read(self, view: memoryview, offset: int) -> IOFuture:
        """Start to fill `view`; its digest is compared when the read has ended."""

        def compare(view: memoryview) -> None:
            written, found = self._written[offset], self._digest(view)
            if found != written:
                raise DigestMismatch(written, found)

        return CheckedFuture(self._inner.read(view, offset), view, compare)


class CheckedFuture(FollowingFuture):
    """A transfer that ends when `inner` has ended and `check(view)` has returned."""

    __slots__ = ("_check", "_view")

    def __init__(
        self, inner: IOFuture, view: memoryview, check: Callable[[memoryview], None]
    ) -> None:
        super().__init__()
        # Dropped at the end, as a cancelled transfer may stay in an executor's queue for long.
        self._view: memoryview | None = view
        self._check = check
        self.follow(inner)

    def conclude(self, outcome: int | Exception | None) -> int | Exception | None:
        """Return `outcome`; if the transfer is complete, check the bytes first."""
        view, self._view = self._view, None
        assert view is not None
        if outcome == len(view):
            self._check(view)
        return outcome


def find_digest() -> Callable[[memoryview], int]:
    """The function that digests bytes to an int; raises ConfigError if xxhash is missing."""
    try:
        import xxhash
    except ImportError:
        raise ConfigError(
            'checksum=True needs the package xxhash; pip install "fxoffload[checksum]"'
        ) from None
    return xxhash.xxh3_64_intdigest
