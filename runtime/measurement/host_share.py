"""The host memory that this process takes for the host tier of a GPU, where no option says it."""

from __future__ import annotations

import logging
import os
from functools import cache

import torch

from fxoffload.runtime.engines.memory_limit import find_available_memory
from fxoffload.sizes import format_bytes

log = logging.getLogger(__name__)

# Of the memory that is available: the rest is for what data loaders, checkpoints and other
# processes take later. Staging buffers take pinned memory beside the tier.
SHARE = 0.5


@cache
def find_host_share() -> int:
    """Bytes for the host tier: SHARE of the available host memory, divided by the ranks here.

    Found once in a process, before this process takes any of it: plans and stores must agree.
    """
    available_bytes, ranks = find_available_memory(), count_local_ranks()
    share = int(SHARE * available_bytes) // ranks
    log.info(
        "host tier: %s, %.0f %% of the %s of host memory that are available%s; host_budget sets "
        "another size, 0 is none",
        format_bytes(share),
        100 * SHARE,
        format_bytes(available_bytes),
        f", divided by {ranks} ranks on this machine" if ranks > 1 else "",
    )
    return share


def count_local_ranks() -> int:
    """The ranks of torch.distributed on this machine; all ranks, if no launcher tells.

    Source: LOCAL_WORLD_SIZE, which torchrun sets.
    """
    told = os.environ.get("LOCAL_WORLD_SIZE", "")
    if told.isdigit() and int(told) > 0:
        return int(told)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1
