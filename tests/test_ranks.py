"""Ranks of one job train as if nothing moved, and call nothing for it."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

JOB = Path(__file__).parent / "parity_job.py"
PROGRAMS = (
    "ddp_outside", "ddp_inside", "ddp_blocks", "ddp_compiled_later", "accelerate",
    "fsdp", "fsdp_blocks", "fsdp_compiled_later", "gpipe", "1f1b",
)  # fmt: skip


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, int]]:
    """Of each of two ranks, the bytes that moved by program; the job itself compares gradients."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    folder = str(tmp_path_factory.mktemp("ranks"))
    ranks = [
        subprocess.Popen(
            [sys.executable, str(JOB), str(rank), str(port), folder],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in ranks]
    for process, (_, errors) in zip(ranks, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    rows = [[line.split() for line in out.splitlines()] for out, _ in outputs]
    return [{name.removeprefix("train_"): int(nbytes) for name, nbytes in each} for each in rows]


def test_every_program_ran_on_both_ranks(moved: list[dict[str, int]]) -> None:
    assert [tuple(each) for each in moved] == [PROGRAMS, PROGRAMS]


@pytest.mark.parametrize("program", PROGRAMS)
def test_bytes_move_on_each_rank(program: str, moved: list[dict[str, int]]) -> None:
    assert min(each[program] for each in moved) > 0
