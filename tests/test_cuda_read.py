"""CudaRead: the copy to the device starts behind the engine's read, and before the end is told."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from fxoffload.errors import StoreClosed
from fxoffload.runtime.devices.cuda_read import CudaRead
from fxoffload.runtime.engines.ioengine import find_outcome


def make_read() -> tuple[CudaRead, Future[int], list[str]]:
    """A read of 5 bytes, the engine's, and what happened."""
    order: list[str] = []
    read = CudaRead(memoryview(bytearray(5)), lambda: order.append("copy"))
    read.add_done_callback(lambda _: order.append("end"))
    return read, Future(), order


def test_the_copy_has_started_when_the_read_ends() -> None:
    read, inner, order = make_read()

    def start(view: memoryview) -> Future[int]:
        order.append(f"read {len(view)}")
        return inner

    read.start(start)
    assert order == ["read 5"]
    inner.set_result(5)
    assert order == ["read 5", "copy", "end"]
    assert read.result() == 5


@pytest.mark.parametrize("outcome", [4, OSError("simulated"), None])
def test_nothing_is_copied_unless_all_was_read(outcome: int | Exception | None) -> None:
    read, inner, order = make_read()
    read.start(lambda _: inner)
    if outcome is None:
        assert read.cancel()
    elif isinstance(outcome, int):
        inner.set_result(outcome)
    else:
        inner.set_exception(outcome)
    assert (find_outcome(read), order) == (outcome, ["end"])


def test_an_engine_that_refuses_fails_the_read() -> None:
    """Other pieces may be on their way already: the read ends with them."""
    read, _, order = make_read()

    def refuse(_: memoryview) -> Future[int]:
        raise StoreClosed("simulated")

    read.start(refuse)
    with pytest.raises(StoreClosed):
        read.result()
    assert order == ["end"]
