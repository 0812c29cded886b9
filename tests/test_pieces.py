"""Pieces of large values, and the transfer that ends with the last of them."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from fxoffload.runtime.engines.ioengine import find_outcome
from fxoffload.runtime.engines.pieces import PIECE_BYTES, JoinedFuture, find_pieces, join_pieces


def make_futures(count: int) -> list[Future[int]]:
    return [Future() for _ in range(count)]


@pytest.mark.parametrize(
    ("nbytes", "expected"),
    [(0, [(0, 0)]), (3, [(0, 3)]), (4, [(0, 4)]), (5, [(0, 4), (4, 5)]), (8, [(0, 4), (4, 8)])],
)
def test_pieces_cover_all_bytes(nbytes: int, expected: list[tuple[int, int]]) -> None:
    assert [(piece.start, piece.stop) for piece in find_pieces(nbytes, 4)] == expected


def test_pieces_are_aligned_for_every_engine() -> None:
    assert PIECE_BYTES % 2**20 == 0


def test_one_piece_is_the_transfer_itself() -> None:
    (only,) = make_futures(1)
    assert join_pieces([only]) is only


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_it_ends_with_the_last_piece(order: tuple[int, ...]) -> None:
    pieces = make_futures(3)
    whole = join_pieces(pieces)
    told: list[int | Exception | None] = []
    whole.add_done_callback(lambda future: told.append(find_outcome(future)))
    for index in order:
        assert (whole.done(), told) == (False, [])
        pieces[index].set_result(10**index)
    assert (whole.result(), told) == (111, [111])
    assert not whole.cancel()


def test_pieces_that_have_ended_are_joined() -> None:
    pieces = make_futures(2)
    for piece in pieces:
        piece.set_result(2)
    assert join_pieces(pieces).result() == 4


def test_the_first_error_counts_once_all_have_ended() -> None:
    """Until then, a piece uses the memory and the slot."""
    pieces = make_futures(4)
    whole = join_pieces(pieces)
    pieces[2].set_exception(OSError("second"))
    pieces[1].set_exception(OSError("first"))
    pieces[3].cancel()
    assert not whole.done()
    pieces[0].set_result(1)
    with pytest.raises(OSError, match="first"):
        whole.result()


def test_what_has_not_started_is_cancelled() -> None:
    pieces = make_futures(3)
    whole = join_pieces(pieces)
    assert whole.cancel()
    assert all(piece.cancelled() for piece in pieces)
    assert find_outcome(whole) is None
    assert not whole.cancel(), "it has ended"


def test_a_piece_that_runs_ends_a_cancelled_transfer() -> None:
    """The others are not moved; so the bytes in the slot are not the value."""
    pieces = make_futures(3)
    whole = join_pieces(pieces)
    pieces[1].set_running_or_notify_cancel()
    assert not whole.cancel()
    assert [piece.cancelled() for piece in pieces] == [True, False, True]
    assert not whole.done()
    pieces[1].set_result(1)
    assert find_outcome(whole) is None


def test_threads_that_end_pieces_at_once_end_the_transfer_once() -> None:
    """A second end of a future raises, which Python logs from a callback."""
    for _ in range(50):
        pieces = make_futures(4)
        whole = JoinedFuture(pieces)
        told: list[int] = []
        whole.add_done_callback(lambda future, told=told: told.append(future.result()))
        gate = threading.Barrier(4)

        def end(piece: Future[int], gate: threading.Barrier = gate) -> None:
            gate.wait()
            piece.set_result(1)

        threads = [threading.Thread(target=end, args=(piece,)) for piece in pieces]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert told == [4]
