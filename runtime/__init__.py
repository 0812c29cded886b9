"""Tensors, bytes, files and streams: the asynchronous store behind the four ops.

    kernels     the ops on real tensors; the stores of this process
    contention  what transfers take from compute on the same cores, from one short probe
    store       offload, release, prefetch, wait, free
    storing     the way out of a value: a slot, and a write
    loading     the way back of a value: forwarded from memory, or read
    ledger      the lock, bytes in flight, how transfers end
    ticket      what is known of one value
    callers     tensors of the caller's: changed meanwhile, or kept anyway
    recorder    when the ops of a graph ran
    devices     finds what moves a device's tensors:  host, cuda
    streams     the side streams of a CUDA device, and their order
    staging     pinned buffers of bounded size, for cuda
    transfer    the protocols of devices, and the layout of bytes in a slot
    buffers     raw bytes of tensors, aligned memory, staging
    checksum    an engine around another one, with digests
    choice      which engine, and what it delivers
    speed       how fast a device computes and exchanges bytes with the host, from short probes
    bandwidth   what an engine delivers, from one short probe
    probe_cache measured speeds on disk
    kvikio_engine, posix, memory    the engines
    memory_limit    what a container, or the machine, allows
    striping    slots over several files
    workers     threads that move bytes
    ioengine    the protocol of engines
    spill_file  one unlinked, preallocated file
    slots       extents of a file
    counters    what the store did, and its frozen record

Modules import only those below them here and `fxoffload.{config,endurance,errors,ops}`; none
sees a graph.
"""

from fxoffload.runtime.bandwidth import Bandwidth
from fxoffload.runtime.choice import EngineChoice, choose_engine, probe_memory
from fxoffload.runtime.contention import Contention, recall_contention
from fxoffload.runtime.counters import StoreStatistics
from fxoffload.runtime.kernels import (
    close_stores,
    drive_lifetimes,
    find_recorders,
    find_store,
    find_threads,
    register_store,
    reset_statistics,
    start_recorder,
    statistics,
    stop_recorder,
)
from fxoffload.runtime.probe_cache import cache_path
from fxoffload.runtime.recorder import StepRecorder
from fxoffload.runtime.speed import Speed, describe_device, recall_exchange, recall_speed

__all__ = [
    "Bandwidth",
    "Contention",
    "EngineChoice",
    "Speed",
    "StepRecorder",
    "StoreStatistics",
    "cache_path",
    "choose_engine",
    "close_stores",
    "describe_device",
    "drive_lifetimes",
    "find_recorders",
    "find_store",
    "find_threads",
    "probe_memory",
    "recall_contention",
    "recall_exchange",
    "recall_speed",
    "register_store",
    "reset_statistics",
    "start_recorder",
    "statistics",
    "stop_recorder",
]
