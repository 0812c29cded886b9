"""Tests of the outcomes of futures."""

from __future__ import annotations

import errno
from concurrent.futures import Future

import pytest

from fxoffload.runtime.engines.ioengine import find_outcome


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
    unexpected = ValueError("not an I/O error")
    surprise.set_exception(unexpected)
    assert find_outcome(surprise) is unexpected


def test_what_interrupts_the_wait_is_raised() -> None:
    interrupted: Future[int] = Future()
    interrupted.set_exception(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        find_outcome(interrupted)
