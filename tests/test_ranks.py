"""Ranks of one job get the same gradients with values moved, without any extra call."""

from __future__ import annotations

import pytest
from ranks import run_ranks

PROGRAMS = (
    "DDP outside", "DDP inside", "DDP of blocks", "DDP compiled later", "accelerate",
    "FSDP", "FSDP of blocks", "FSDP compiled later", "GPipe", "1F1B",
)  # fmt: skip


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, int]]:
    """Of each of two ranks, the bytes that moved by program; the job itself compares gradients."""
    folder = tmp_path_factory.mktemp("ranks")
    printed = run_ranks("parity_job.py", folder, timeout_seconds=300)
    rows = [[line.split(": ") for line in lines] for lines in printed]
    return [{name: int(nbytes) for name, nbytes in each} for each in rows]


def test_every_program_ran_on_both_ranks(moved: list[dict[str, int]]) -> None:
    assert [tuple(each) for each in moved] == [PROGRAMS, PROGRAMS]


@pytest.mark.parametrize("program", PROGRAMS)
def test_bytes_move_on_each_rank(program: str, moved: list[dict[str, int]]) -> None:
    assert min(each[program] for each in moved) > 0
