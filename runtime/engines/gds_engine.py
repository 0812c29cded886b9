"""KvikIO with GPUDirect Storage: drives and the GPU move bytes without host memory in between.

Device memory moves by the stream calls of cuFile: each worker thread starts one transfer at a time
on a stream of its own, and sleeps until it has ended. KvikIO's other calls first wait for all work
that is queued on the default stream, on which torch computes, so that a transfer would begin late.

KvikIO falls back to copies through host memory where cuFile fails. Here its compatibility mode is
off instead, so that a machine without GPUDirect Storage is told so.

Source: https://docs.nvidia.com/gpudirect-storage/api-reference-guide/index.html#cufilewriteasync
"""

from __future__ import annotations

import errno
import importlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fxoffload.runtime.engines.ioengine import IOFuture
from fxoffload.runtime.engines.kvikio_engine import (
    KvikioEngine,
    Obstacle,
    as_os_error,
    find_obstacle,
)
from fxoffload.runtime.engines.spill_file import SpillFile
from fxoffload.runtime.engines.workers import Workers

# Transfers of each direction of each file that are in flight: one stream runs one after the other.
STREAMS = 4
CONFIG_VARIABLE = "CUFILE_ENV_PATH_JSON"
CONFIG_PATH = "/etc/cufile.json"
INSTALL = "install NVIDIA's package nvidia-gds"


def find_gds_obstacle() -> Obstacle | None:
    """The reason why this process cannot use GPUDirect Storage; None if it can."""
    obstacle = find_obstacle()
    if obstacle is not None:
        return obstacle
    driver = importlib.import_module("kvikio.cufile_driver")
    try:
        driver.driver_open()
    except RuntimeError as error:
        # Without this check, KvikIO ends the process when a file is opened.
        return Obstacle(f"cuFile cannot be used ({error})", INSTALL)
    available = driver.get("is_gds_available")
    driver.driver_close()
    if not available:
        return Obstacle(
            "GPUDirect Storage is not available: cuFile finds no driver nvidia-fs",
            f"{INSTALL} and load the module nvidia-fs",
        )
    paths = (os.environ.get(CONFIG_VARIABLE, CONFIG_PATH), CONFIG_PATH)
    if not any(Path(path).exists() for path in paths):
        # Source: KvikIO, CompatModeManager: without this file the stream calls do not work.
        return Obstacle(
            f"cuFile has no configuration: there is no {paths[0]}",
            f"{INSTALL}, or name the file by {CONFIG_VARIABLE}",
        )
    return None


class GdsEngine(KvikioEngine):
    """Moves device memory by cuFile, and host memory as KvikioEngine does.

    `find_gds_obstacle` must have returned None. Raises OSError if cuFile cannot use a file, as on a
    file system without support.
    """

    def __init__(
        self, spill_files: Sequence[SpillFile], *, bytes_per_second: Sequence[float] = ()
    ) -> None:
        kvikio, defaults = map(importlib.import_module, ("kvikio", "kvikio.defaults"))
        with defaults.set("compat_mode", kvikio.CompatMode.OFF):
            super().__init__(spill_files, bytes_per_second=bytes_per_second)
        self.name = "kvikio gds"
        self.move_device = self._move_device
        self._streams: dict[torch.device, deque[torch.cuda.Stream]] = {}  # That nothing uses.
        self._device_writers, self._device_readers = (
            tuple(Workers(STREAMS, f"fxoffload-gds-{verb}") for _ in spill_files)
            for verb in ("write", "read")
        )

    def close(self) -> None:
        """Finish the transfers, then close the files."""
        for workers in (*self._device_writers, *self._device_readers):
            workers.shutdown()
        super().close()

    def _move_device(self, tensor: torch.Tensor, offset: int, *, write: bool) -> IOFuture:
        start = partial(self._start_on_device, tensor=tensor)
        return self.track(start, tensor.nbytes, offset, write=write)

    def _start_on_device(
        self, index: int, position: int, *, tensor: torch.Tensor, write: bool
    ) -> IOFuture:
        handle = self._handles[index]
        workers = (self._device_writers if write else self._device_readers)[index]
        call = handle.raw_write_async if write else handle.raw_read_async
        return workers.submit(partial(self._move_on_stream, call, position), tensor)

    def _move_on_stream(self, call: Callable[..., Any], position: int, tensor: torch.Tensor) -> int:
        """In a worker: move all of `tensor` by `call`, a stream call of KvikIO's file."""
        free = self._streams.setdefault(tensor.device, deque())
        with torch.cuda.device(tensor.device):
            try:
                stream = free.pop()
            except IndexError:
                # Not of the normal priority: torch gives the same few streams to all who ask, and
                # work that shares one with a transfer waits for the drive.
                stream = torch.cuda.Stream(tensor.device, priority=-1)
            moved = move_on_stream(call, position, tensor, stream)
        free.append(stream)
        return moved


def move_on_stream(
    call: Callable[..., Any], position: int, tensor: torch.Tensor, stream: torch.cuda.Stream
) -> int:
    """Move all of `tensor` by `call`, and sleep until `stream` has; return the bytes.

    call: a stream call of KvikIO's file. Raises OSError if not all bytes were moved.
    """
    try:
        transfer = call(tensor, stream.cuda_stream, tensor.nbytes, position)
        # KvikIO would spin on a core while it waits for the stream.
        ended = torch.cuda.Event(blocking=True)
        ended.record(stream)
        ended.synchronize()
        moved = transfer.check_bytes_done()
    except RuntimeError as error:
        raise as_os_error(error) from error
    if moved != tensor.nbytes:
        raise OSError(errno.EIO, f"short transfer: {moved} of {tensor.nbytes} bytes")
    return moved
