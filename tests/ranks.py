"""Runs a job of the tests as two ranks, which join one group."""

from __future__ import annotations

import datetime
import socket
import subprocess
import sys
from pathlib import Path

import torch.distributed as dist


def run_ranks(job: str, folder: Path, *, timeout_seconds: float) -> list[list[str]]:
    """Of each rank, the lines that it printed. job: a file beside this one.

    It gets its rank, a free port, and `folder`.
    """
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    path = Path(__file__).parent / job
    ranks = [
        subprocess.Popen(
            [sys.executable, str(path), str(rank), str(port), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=timeout_seconds) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outputs
    return [out.splitlines() for out, _ in outputs]


def join_ranks(rank: int, port: str, *, timeout_seconds: float) -> None:
    """In a job that run_ranks started: make a group of gloo with the other rank."""
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=timeout_seconds),
    )
