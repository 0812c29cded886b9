"""Where the saved values of a toy graph are, and its drawing."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from drawings import list_elements
from toys import HARDWARE, linear_relu, make_input

import fxoffload
from fxoffload.errors import ReportError
from fxoffload.inspection.lifetime_chart import Stay, draw_lifetimes, find_stays, list_nodes

OPTIONS: dict[str, Any] = {
    "compiler": "eager", "min_bytes": 1, "ioengine": "memory", "hardware": HARDWARE
}  # fmt: skip


@pytest.fixture
def explanation(fresh_dynamo: None) -> fxoffload.Explanation:
    x = make_input().requires_grad_()
    return fxoffload.explain(linear_relu, x, options={**OPTIONS, "memory_budget": "min"})


def test_a_value_leaves_behind_its_release_and_comes_at_its_prefetch(
    explanation: fxoffload.Explanation,
) -> None:
    names = list_nodes(explanation.graphs[0])
    stays = find_stays(explanation)["relu"]
    assert [stay.place for stay in stays] == ["device", "nvme", "device"]
    here, away, back = stays
    assert (names[here.start], names[here.end]) == ("relu", "release_default_2")
    assert (away.start, away.end) == (here.end + 1, back.start - 1)
    assert (names[back.start], names[back.end]) == ("prefetch_default_2", "threshold_backward")
    assert names.index("output") < back.start


def test_a_value_that_is_kept_stays_to_its_last_reader(fresh_dynamo: None) -> None:
    x = make_input().requires_grad_()
    options = {**OPTIONS, "memory_budget": "1GiB"}
    kept = fxoffload.explain(linear_relu, x, options=options)
    names = list_nodes(kept.graphs[0])
    ((stay,),) = (stays for name, stays in find_stays(kept).items() if name == "relu")
    assert stay == Stay("device", names.index("relu"), names.index("threshold_backward"))


def test_the_drawing_has_each_stay(explanation: fxoffload.Explanation) -> None:
    file = io.StringIO()
    draw_lifetimes(explanation).savefig(file, format="svg")
    expected = [
        f"{name}-{stay.place}-{stay.start}-{stay.end}"
        for name, stays in find_stays(explanation).items()
        for stay in stays
    ]
    assert list_elements(file.getvalue()) == expected


def test_what_cannot_be_drawn(
    explanation: fxoffload.Explanation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ReportError, match=r"there is no graph 1; the explanation has 1 graph"):
        draw_lifetimes(explanation, 1)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ReportError, match=r'pip install "fxoffload\[demo\]"'):
        draw_lifetimes(explanation)
