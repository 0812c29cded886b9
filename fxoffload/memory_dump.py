"""Memory dumps: a file that lists what was in a device's memory when it ran out.

There is one file for each process, in its first spill directory; a later dump replaces it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from functools import cache

import torch

from fxoffload import runtime, torch_internals
from fxoffload.config import OffloadConfig
from fxoffload.errors import BudgetError, ConfigError
from fxoffload.holders import Holder, list_rows
from fxoffload.sizes import MIB
from fxoffload.step_schedules import find_running
from fxoffload.tables import format_table

log = logging.getLogger(__name__)


def explain_failure(error: BudgetError, config: OffloadConfig) -> BudgetError:
    """`error`, with its holders in a file that its message names."""
    saved = save_holders(config, str(error), error.holders)
    return error.rephrase(f"{error}; {saved}")


@cache
def watch_devices() -> bool:
    """Dump what values take each time that CUDA has too little memory while a step runs.

    Returns False where this build of torch does not tell, as one without CUDA.
    """
    return torch_internals.watch_out_of_memory(note_out_of_memory)


def note_out_of_memory(
    device_index: int, asked_bytes: int, total_bytes: int, free_bytes: int
) -> None:
    """A device is out of memory: write what the running steps hold, and say where.

    Outside of steps nothing is written: no value of ours is in memory then.
    """
    running = find_running()
    if running is None:
        return
    config, held = running
    device = torch.device("cuda", device_index)
    allocated_bytes = runtime.count_live_bytes(device) or 0
    ours_bytes = sum(each.nbytes for each in held)
    facts = (
        f"{device} is out of memory: {asked_bytes / MIB:.1f} MiB are asked for, and "
        f"{free_bytes / MIB:.1f} of {total_bytes / MIB:.1f} MiB are free; tensors have "
        f"{allocated_bytes / MIB:.1f} MiB, {ours_bytes / MIB:.1f} MiB of these are values that the "
        "steps in progress saved for their backwards"
    )
    log.error("%s; %s", facts, save_holders(config, facts, held))


def save_holders(config: OffloadConfig, facts: str, holders: Iterable[Holder]) -> str:
    """Write `facts` and a table of `holders`; returns a clause for messages that names the file.

    Where it cannot be written, as the drive may be full, the clause says why.
    """
    ranks = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if ranks else 0
    text = f"{facts}\n\n{format_table(list_rows(holders, whole_paths=True))}\n"
    try:
        path = config.directories[0] / f"fxoffload-memory-rank{rank}-pid{os.getpid()}.txt"
        path.write_text(text, encoding="utf-8")
    except (OSError, ConfigError) as error:
        return f"what is in memory could not be written to a file: {error}"
    return f"all that is in memory is in {path}"
