"""What runs a transformed graph: the four ops on real tensors, and the store behind them.

    kernels         the ops
    stores          the stores of this process
    program/        the steps of a job: recorded, measured, and run by their schedules
    measurement/    how fast engines and devices are; when the ops of a graph ran
    store/          one value from its offload to its wait; what is in flight; failures
    devices/        from a tensor's memory to bytes that an engine can move, and back
    engines/        slots on a drive or in memory; transfers to and from them

A folder imports only from those below it, and no module imports passes or the planner: the runtime
knows no graph. The table ROOMS in tests/test_layering.py has the rules.
"""

from fxoffload.runtime.kernels import (
    begin_step,
    find_next_schedule,
    find_programs,
    forget_programs,
    list_held,
    note_forward,
    schedule_graph,
)
from fxoffload.runtime.measurement.bandwidth import Bandwidth
from fxoffload.runtime.measurement.choice import EngineChoice, choose_engine, probe_memory
from fxoffload.runtime.measurement.contention import Contention, recall_contention
from fxoffload.runtime.measurement.host_share import find_host_share
from fxoffload.runtime.measurement.probe_cache import cache_path
from fxoffload.runtime.measurement.speed import (
    Speed,
    describe_device,
    recall_exchange,
    recall_speed,
)
from fxoffload.runtime.program.live_bytes import (
    count_foreign_bytes,
    count_live_bytes,
    find_device_bytes,
)
from fxoffload.runtime.program.threads import GraphRules
from fxoffload.runtime.store.counters import StoreStatistics
from fxoffload.runtime.stores import (
    close_stores,
    drive_lifetimes,
    find_store,
    register_store,
    reset_statistics,
    statistics,
)

__all__ = [
    "Bandwidth",
    "Contention",
    "EngineChoice",
    "GraphRules",
    "Speed",
    "StoreStatistics",
    "begin_step",
    "cache_path",
    "choose_engine",
    "close_stores",
    "count_foreign_bytes",
    "count_live_bytes",
    "describe_device",
    "drive_lifetimes",
    "find_device_bytes",
    "find_host_share",
    "find_next_schedule",
    "find_programs",
    "find_store",
    "forget_programs",
    "list_held",
    "note_forward",
    "probe_memory",
    "recall_contention",
    "recall_exchange",
    "recall_speed",
    "register_store",
    "reset_statistics",
    "schedule_graph",
    "statistics",
]
