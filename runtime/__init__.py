"""Tensors, bytes, files and streams: the asynchronous store behind the four ops.

    kernels     the ops on real tensors; the stores of this process
    store       offload, release, prefetch, wait, free
    loading     the way back of a value: forwarded from memory, or read
    ledger      the lock, bytes in flight, how transfers end
    ticket      what is known of one value
    devices     finds what moves a device's tensors:  host, cuda
    transfer    the protocols of devices, and the layout of bytes in a slot
    buffers     raw bytes of tensors, aligned memory, staging
    ioengine    the protocol of engines and their choice:  posix, memory
    spill_file  one unlinked, preallocated file
    slots       extents of a file
    bandwidth   what an engine delivers
    counters    what the store did, and its frozen record

Modules import only those below them here and `fxoffload.{config,errors,ops}`; none sees a graph.
"""

from fxoffload.runtime.counters import StoreStatistics
from fxoffload.runtime.kernels import (
    close_stores,
    find_store,
    measure_store,
    register_store,
    reset_statistics,
    statistics,
)

__all__ = [
    "StoreStatistics",
    "close_stores",
    "find_store",
    "measure_store",
    "register_store",
    "reset_statistics",
    "statistics",
]
