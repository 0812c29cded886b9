"""Plain steps while another process moves as many bytes: what the drive alone takes from compute.

On a CPU the cores that compute also serve the drive. The other process has our engine and no
activations: it writes the bytes during the first part of a step, and reads them during the rest.
"""

from __future__ import annotations

import mmap
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.trainer import Trainer
from fxoffload.cli.byte_models import LossOnly
from fxoffload.runtime.engines.posix import PosixEngine
from fxoffload.runtime.engines.spill_file import SpillFile

CHUNK_BYTES = 8 * 2**20  # A saved value of the benchmarks.
FORWARD_SHARE = 1 / 3  # Of a step.


class DriveLoad:
    """A process that moves `nbytes` each way for every step; it ends with this one."""

    def __init__(self, directory: Path, nbytes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        context.Process(target=serve, args=(other, directory, nbytes), daemon=True).start()
        self.wait()

    def start(self, seconds: float) -> None:
        """Move the bytes in about so many seconds."""
        self._connection.send(seconds)

    def wait(self) -> None:
        """Until it has moved them."""
        self._connection.recv()


@dataclass(frozen=True, slots=True)
class LoadedTrainer:
    """Another trainer, beside a load. seconds: of one of its steps."""

    trainer: Trainer
    load: DriveLoad
    seconds: float

    @property
    def model(self) -> LossOnly:
        """That of the trainer."""
        return self.trainer.model

    def step(self) -> tuple[float, float]:
        """Loss and seconds of one step."""
        self.load.start(self.seconds)
        found = self.trainer.step()
        self.load.wait()
        return found


def serve(connection: Connection, directory: Path, nbytes: int) -> None:
    """In the other process: tell when ready, then move the bytes for each message, to the last."""
    engine = PosixEngine([SpillFile(directory)])
    memory = mmap.mmap(-1, CHUNK_BYTES)
    memory.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(memory)
    slots = [engine.allocate(CHUNK_BYTES) for _ in range(-(-nbytes // CHUNK_BYTES))]
    move(lambda slot: engine.write(view, slot).result(), slots, 0.0)
    connection.send(None)
    while True:
        try:
            seconds: float = connection.recv()
        except EOFError:  # The benchmark has closed its end.
            return engine.close()
        move(lambda slot: engine.write(view, slot).result(), slots, FORWARD_SHARE * seconds)
        move(lambda slot: engine.read(view, slot).result(), slots, (1 - FORWARD_SHARE) * seconds)
        connection.send(None)


def move(transfer: Callable[[int], int], slots: list[int], seconds: float) -> None:
    """Start the transfers at equal distances over `seconds`, each behind the one before."""
    start = time.monotonic()
    for number, slot in enumerate(slots):
        time.sleep(max(0.0, start + seconds * number / len(slots) - time.monotonic()))
        moved = transfer(slot)
        if moved != CHUNK_BYTES:
            raise OSError(f"the drive moved {moved} of {CHUNK_BYTES} bytes")
