"""Transfers start behind their event, and whoever comes first starts or cancels them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from fxoffload.errors import StoreClosed
from fxoffload.runtime.devices.cuda_deferred import DeferredTransfer, HostWrite
from fxoffload.runtime.engines.ioengine import find_outcome


class Passing:
    """In place of the event: `wait` is what waiting for it does."""

    def __init__(self, wait: Callable[[], object] = lambda: None) -> None:
        self.synchronize = wait


def make_write(
    write: Callable[[memoryview], Any], wait: Callable[[], object] = lambda: None
) -> DeferredTransfer:
    after: Any = Passing(wait)
    return DeferredTransfer(after, partial(write, memoryview(b"12345")))


def test_the_engine_writes_behind_the_copy() -> None:
    order: list[object] = []
    inner: Future[int] = Future()

    def start(view: memoryview) -> Future[int]:
        order.append(bytes(view))
        return inner

    write = make_write(start, lambda: order.append("copied"))
    assert order == []
    write.run()
    assert order == ["copied", b"12345"]
    assert not write.done()
    inner.set_result(5)
    assert write.result() == 5


@dataclass
class HostCopy:
    """In place of the event of a copy out to the host tier."""

    passed: bool = False

    def query(self) -> bool:
        return self.passed

    def synchronize(self) -> None:
        self.passed = True


def make_host_write() -> tuple[HostWrite, Any, list[int | Exception | None]]:
    """A write of 5 bytes, its copy, and the outcomes that its callback was told."""
    copy: Any = HostCopy()
    write = HostWrite(copy, 5)
    told: list[int | Exception | None] = []
    write.add_done_callback(lambda future: told.append(find_outcome(future)))
    return write, copy, told


def test_what_stays_in_host_memory_is_written_when_it_is_copied() -> None:
    """Whoever asks first ends it; it is counted once."""
    write, copy, told = make_host_write()
    assert not write.note_copied()
    assert not write.done()
    assert told == []
    copy.passed = True
    assert write.done()
    assert told == [5]
    assert write.note_copied()
    assert not write.cancel()
    assert (write.result(), told) == (5, [5])


@pytest.mark.parametrize("by", ["result", "note_copied"])
def test_who_needs_what_stays_waits_for_its_copy(by: str) -> None:
    write, copy, told = make_host_write()
    assert write.result() == 5 if by == "result" else write.note_copied(wait=True)
    assert (copy.passed, told) == (True, [5])


def test_what_stays_is_cancelled_until_its_copy_has_ended() -> None:
    write, copy, told = make_host_write()
    assert write.cancel()
    copy.passed = True
    assert write.note_copied()
    assert find_outcome(write) is None
    assert told == [None]
    late, copy, told = make_host_write()
    copy.passed = True
    assert not late.cancel()
    assert told == [5]


def test_a_write_that_has_not_begun_is_cancelled() -> None:
    write = make_write(lambda _: pytest.fail("the engine writes"), lambda: pytest.fail("it waits"))
    assert write.cancel()
    write.run()
    assert find_outcome(write) is None
    assert write.done()


@pytest.mark.parametrize("started", [False, True])
def test_a_write_of_the_engine_is_cancelled_as_it_lets(started: bool) -> None:
    inner: Future[int] = Future()
    write = make_write(lambda _: inner)
    write.run()
    if started:
        inner.set_running_or_notify_cancel()
    assert write.cancel() is not started
    assert inner.cancelled() is write.done() is not started


def test_a_write_that_waits_for_its_copy_cannot_be_cancelled() -> None:
    """It would be written all the same."""
    inner: Future[int] = Future()
    cancelled: list[bool] = []
    write = make_write(lambda _: inner, lambda: cancelled.append(write.cancel()))
    write.run()
    inner.set_result(5)
    assert (cancelled, write.result()) == ([False], 5)


@pytest.mark.parametrize("fails", ["copy", "write"])
def test_errors_are_those_of_the_write(fails: str) -> None:
    """The thread goes on with the next one."""

    def refuse(*_: object) -> Any:
        raise StoreClosed(fails)

    done: Future[int] = Future()
    done.set_result(5)
    write = make_write(
        refuse if fails == "write" else lambda _: done,
        refuse if fails == "copy" else lambda: None,
    )
    write.run()
    with pytest.raises(StoreClosed, match=fails):
        write.result()
