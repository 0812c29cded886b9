"""Runs a function in a fresh process, so that its memory, caches and threads are its own."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ParamSpec
from unittest.mock import patch

from fxoffload import OffloadError

# glibc keeps freed blocks in its heap, where they stay resident below any live one: a peak RSS then
# tells more of that than of what is alive. With this every block above 1 MiB goes back to the
# system when it is freed. That takes time, so it is for processes whose steps are not timed.
RETURN_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
# As CUDA's allocator does: what is freed stays for the next step. By itself glibc maps every block
# of 32 MiB and more anew, and the system clears its pages: some code then seems slower than other
# by how often it happens to reuse a buffer. With this no step asks the system for memory.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
TAIL_LINES = 30

Parameters = ParamSpec("Parameters")
Record = dict[str, Any]


class ChildFailed(Exception):
    """The child ended without a result; the message is what it said last."""


def run_fresh(
    environment: Mapping[str, str],
    work: Callable[Parameters, Iterator[Record]],
    *args: Parameters.args,
    **kwargs: Parameters.kwargs,
) -> Iterator[Record]:
    """Yield each record of `work(*args, **kwargs)` as it comes; raises ChildFailed at a failure.

    environment: variables of the child beside those of this process.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile("r") as said:
        call = partial(work, *args, **kwargs)
        child = context.Process(target=_send_records, args=(sender, said.name, call))
        with patch.dict(os.environ, environment):
            child.start()
        sender.close()  # The child has the only one: the pipe ends when it does.
        try:
            for record in iter(receiver.recv, None):
                if isinstance(record, ChildFailed):
                    child.join()
                    raise record
                yield record
            child.join()  # Killed, it would leave its semaphores, of which Python warns.
        except EOFError:
            child.join()
            last = "".join(said.readlines()[-TAIL_LINES:])
            status = f"{work.__name__} ended with status {child.exitcode}"
            raise ChildFailed(f"{status}:\n{last}") from None
        finally:
            child.kill()
            child.join()


def _send_records(sender: Connection, path: str, call: Callable[[], Iterator[Record]]) -> None:
    """In the child: send the records, then None; what fxoffload refuses goes there in words."""
    with Path(path).open("w") as said:
        for stream in (1, 2):  # Libraries print to them.
            os.dup2(said.fileno(), stream)
    try:
        for record in call():
            sender.send(record)
        sender.send(None)
    except OffloadError as error:
        sender.send(ChildFailed(f"{type(error).__name__}: {error}"))
