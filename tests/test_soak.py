"""A thousand steps: no resource of the process grows with the steps."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from job import Job, open_job

import fxoffload

STEPS = 1000
WARM_UP = 200
GROWTH_BYTES = 2**20  # A value that leaked at each step would be a hundred times that.


SAMPLER = "fxoffload-sampler"


class Held(NamedTuple):
    """What a process and its store hold between two steps."""

    resident_bytes: int
    descriptors: frozenset[str]
    threads: frozenset[str]
    disk_bytes: int
    tickets: int
    live_bytes: int
    inflight_bytes: int


def find_held(job: Job) -> Held:
    gc.collect()
    done = fxoffload.statistics()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    (fd,) = job.store.engines["nvme"].inner._fds
    names = [thread.name for thread in threading.enumerate()]
    # That of a step that was measured looks until the next step begins.
    assert names.count(SAMPLER) <= 1
    return Held(
        resident_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
        descriptors=frozenset(os.listdir("/proc/self/fd")),
        threads=frozenset(names) - {SAMPLER},
        disk_bytes=os.fstat(fd).st_blocks * 512,
        tickets=len(fxoffload.runtime.kernels._entries),
        live_bytes=done.live_bytes,
        inflight_bytes=done.inflight_bytes,
    )


@pytest.mark.slow
def test_a_thousand_steps(spill_directory: Path) -> None:
    with open_job(spill_directory) as job:
        optimizer = torch.optim.SGD(job.model.parameters(), lr=1e-6)
        fxoffload.reset_statistics()
        for step in range(STEPS):
            optimizer.zero_grad()
            job.compiled(job.x).sum().backward()
            optimizer.step()
            if step == WARM_UP:
                early = find_held(job)
        late = find_held(job)
        done = fxoffload.statistics()
    assert done.offloads == STEPS * job.calls
    assert done.read_bytes + done.forwarded_bytes == done.offloaded_bytes
    assert done.written_bytes + done.cancelled_bytes == done.offloaded_bytes
    assert done.written_bytes > 0
    assert done.write_errors == done.read_errors == 0
    assert (late.live_bytes, late.inflight_bytes, late.tickets) == (0, 0, 0)
    assert late.resident_bytes < early.resident_bytes + GROWTH_BYTES
    assert late._replace(resident_bytes=0) == early._replace(resident_bytes=0)
    assert list(spill_directory.iterdir()) == []
