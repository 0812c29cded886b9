"""A torch.compile backend that trains with its saved activations on NVMe or in host memory.

step = torch.compile(model, backend="fxoffload", options={"directory": "/mnt/nvme"})
"""

from fxoffload.backend import compile
from fxoffload.config import OffloadConfig
from fxoffload.errors import (
    ConfigError,
    GraphError,
    OffloadError,
    PlanError,
    StoreClosed,
    StoreError,
    StoreFull,
    TransferError,
)
from fxoffload.inspection import Explanation, explain
from fxoffload.runtime import StoreStatistics, reset_statistics, statistics

__all__ = [
    "ConfigError",
    "Explanation",
    "GraphError",
    "OffloadConfig",
    "OffloadError",
    "PlanError",
    "StoreClosed",
    "StoreError",
    "StoreFull",
    "StoreStatistics",
    "TransferError",
    "compile",
    "explain",
    "reset_statistics",
    "statistics",
]
