"""CudaWrite: the engine writes behind the copy, and whoever comes first writes or cancels."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from fxoffload.errors import StoreClosed
from fxoffload.runtime.devices.cuda_write import CudaWrite


class Copied:
    """In place of the event of the copy: `wait` is what waiting for it does."""

    def __init__(self, wait: Callable[[], object] = lambda: None) -> None:
        self.synchronize = wait


def make_write(
    write: Callable[[memoryview], Any] | None, wait: Callable[[], object] = lambda: None
) -> CudaWrite:
    copied: Any = Copied(wait)
    return CudaWrite(copied, memoryview(b"12345"), write)


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


def test_what_stays_in_host_memory_is_written_when_it_is_copied() -> None:
    copied: list[bool] = []
    write = make_write(None, lambda: copied.append(True))
    write.run()
    assert (copied, write.result()) == ([True], 5)


def test_a_write_that_has_not_begun_is_cancelled() -> None:
    write = make_write(lambda _: pytest.fail("the engine writes"), lambda: pytest.fail("it waits"))
    assert write.cancel()
    write.run()
    assert write.cancelled()
    assert write.done()


@pytest.mark.parametrize("started", [False, True])
def test_a_write_of_the_engine_is_cancelled_as_it_lets(started: bool) -> None:
    inner: Future[int] = Future()
    write = make_write(lambda _: inner)
    write.run()
    if started:
        inner.set_running_or_notify_cancel()
    assert write.cancel() is not started
    assert inner.cancelled() is write.cancelled() is not started


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
