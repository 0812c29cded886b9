"""Threads that run transfers: an executor with less overhead per call than concurrent.futures."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol

from fxoffload.runtime.engines.future import Item, ViewFuture


class Runnable(Protocol):
    """A job of a worker; `run` must not raise."""

    def run(self) -> None:
        """Do the job, unless it was cancelled."""
        ...


class Transfer(ViewFuture[Item]):
    """A call of `move(view)` in a worker. It drops `view` when it ends."""

    __slots__ = ("_move",)

    def __init__(self, move: Callable[[Item], int], view: Item) -> None:
        super().__init__(view)
        self._move = move

    def run(self) -> None:
        """In a worker: run the transfer, unless it was cancelled."""
        view = self.take_view()
        if view is None:
            return
        try:
            outcome = self._move(view)
        except Exception as error:
            outcome = error
        except BaseException as error:
            # `result` must not raise it: the waiting thread would take it for its own interrupt.
            outcome = RuntimeError(f"a transfer was ended by {error!r}")
        del view
        self.end(outcome)


class Workers:
    """`count` threads that run transfers in the order in which they were submitted.

    Each thread calls `enter()` when it starts.
    """

    def __init__(
        self, count: int, name: str, *, enter: Callable[[], object] = lambda: None
    ) -> None:
        self._queue: SimpleQueue[Runnable | None] = SimpleQueue()
        self._closed = False
        # Daemon threads: the interpreter joins other threads before its exit handlers run, which
        # close the stores.
        self._threads = [
            threading.Thread(
                target=_work, args=(self._queue, enter), name=f"{name}_{i}", daemon=True
            )
            for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, move: Callable[[Item], int], view: Item) -> Transfer[Item]:
        """Start `move(view)` in a thread; raises RuntimeError after shutdown."""
        transfer = Transfer(move, view)
        self.start(transfer)
        return transfer

    def start(self, transfer: Runnable) -> None:
        """Let a thread run `transfer`; raises RuntimeError after shutdown."""
        if self._closed:
            raise RuntimeError("cannot start a transfer after shutdown")
        self._queue.put(transfer)

    def shutdown(self) -> None:
        """Finish the submitted transfers and end the threads. A second call does nothing."""
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        while self._threads:
            self._threads.pop().join()


def _work(queue: SimpleQueue[Runnable | None], enter: Callable[[], object]) -> None:
    enter()
    while True:
        transfer = queue.get()
        if transfer is None:
            return
        transfer.run()
        del transfer  # Drop the reference, as the next transfer may come much later.
