"""Ranks of one job: they measure different speeds, but must run the same collectives."""

from __future__ import annotations

import ast

import pytest
from ranks import run_ranks

NUM_CASES = (5 + 1) * 3  # Programs, one of them with checkpoints too, at three budgets.

Outcome = tuple[str, str, str]  # The case, the cut and the collectives of its graphs, moved bytes.


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[list[Outcome]]:
    """Of each of two ranks, whose links differ by a factor of half a million."""
    folder = tmp_path_factory.mktemp("ranks")
    printed = run_ranks("distributed_job.py", folder, timeout_seconds=500)
    return [
        [(case, graphs, moved) for case, graphs, moved in (row.split("\t") for row in rows)]
        for rows in printed
    ]


def test_ranks_run_the_same_collectives(outcomes: list[list[Outcome]]) -> None:
    slow, fast = ([(case, graphs) for case, graphs, _ in rank] for rank in outcomes)
    assert slow == fast
    assert len(slow) == NUM_CASES


def test_ranks_move_what_suits_their_own_links(outcomes: list[list[Outcome]]) -> None:
    slow, fast = ({case: int(moved) for case, _, moved in rank} for rank in outcomes)
    assert slow["gathered False None"] < fast["gathered False None"]
    assert all(moved > 0 for case, moved in slow.items() if case.endswith("min"))


def test_budgets_of_ranks_change_cuts(outcomes: list[list[Outcome]]) -> None:
    """Else the cases under a budget in bytes would show nothing."""
    cuts = {
        case: {cut for cut, _ in ast.literal_eval(graphs)}
        for case, graphs, _ in outcomes[0]
        if case.rsplit(" ", 1)[-1].isdigit()
    }
    assert cuts["gathered False 330000"] - {None}
    # A share of what is saved: torch's knapsack then sizes process groups, too.
    assert any(isinstance(cut, float) for cut in cuts["tensor parallel False 120000"])


def test_ranks_review_cuts_with_the_step_in_view(outcomes: list[list[Outcome]]) -> None:
    """In the same step, with the same result: the first test compares them."""
    for rank in outcomes:
        graphs = {case: ast.literal_eval(found) for case, found, _ in rank}
        cuts = [cut for cut, _ in graphs["fsdp per block False 200000"]]
        assert cuts == [None, None, "loops", "loops"], "a block by itself is cut as it is"
