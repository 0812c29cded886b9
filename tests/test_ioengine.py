"""Outcomes of futures."""

from __future__ import annotations

import errno
from concurrent.futures import Future

import pytest

from fxoffload.runtime.ioengine import find_outcome


def test_outcomes() -> None:
    moved: Future[int] = Future()
    moved.set_result(5)
    failed: Future[int] = Future()
    error = OSError(errno.EIO, "broken")
    failed.set_exception(error)
    cancelled: Future[int] = Future()
    cancelled.cancel()
    assert [find_outcome(future) for future in (moved, failed, cancelled)] == [5, error, None]
    surprise: Future[int] = Future()
    surprise.set_exception(ValueError("not an I/O error"))
    with pytest.raises(ValueError, match="not an I/O error"):
        find_outcome(surprise)
