"""The model of a graph in segments says the same as its nodes."""

from __future__ import annotations

from steps import make_step, make_value

from fxoffload.planner.graph_model import build_graph_model
from fxoffload.planner.step import Residence

STEP = make_step(
    [
        make_value("a", born=1, last_use=3, first_use=6, freed=7),
        make_value("b", born=4, last_use=5, first_use=2, freed=3),
        make_value("mine", born=0, last_use=0, first_use=0, freed=9, owned=False, refusal="input"),
    ],
    fixed=[Residence("f", 7, 2, 2), Residence("g", 5, 8, 12)],
)
FORWARD = [(("offload", "a"), 2), (("release", "a"), 4), (("offload", "b"), 5)]
FORWARD += [(("release", "b"), 10)]
BACKWARD = [(("prefetch", "b"), 1), (("wait", "b"), 2), (("prefetch", "a"), 6), (("wait", "a"), 6)]


def test_segments() -> None:
    model = build_graph_model(STEP, FORWARD, BACKWARD)
    # Forward: 0 | 1 | 2 3 | 4 | 5 | 6 ... 9; the second one ends where b's last reader has run.
    assert model.forward.seconds == (1.0, 1.0, 2.0, 1.0, 1.0, 4.0)
    assert model.forward.fixed_bytes == (0, 0, 7, 0, 0, 5)
    assert model.forward.ops == tuple(
        zip((event for event, _ in FORWARD), (2, 3, 4, 6), strict=True)
    )
    # Backward: 0 | 1 | 2 3 | 4 5 | 6 7 | 8 9.
    assert model.backward.seconds == (1.0, 1.0, 2.0, 2.0, 2.0, 2.0)
    assert model.backward.fixed_bytes == (5, 5, 5, 0, 0, 0)
    assert [position for _, position in model.backward.ops] == [1, 2, 4, 4]


def test_values_in_segments() -> None:
    """What does not count is not part of the model."""
    a, b = build_graph_model(STEP, FORWARD, BACKWARD).values
    assert (a.born, a.last_use, a.first_use, a.freed) == (1, 2, 4, 4)
    assert (b.born, b.last_use, b.first_use, b.freed) == (3, 4, 2, 2)


def test_sizes_of_a_call() -> None:
    """What is not named grows in proportion, and does not shrink."""
    model = build_graph_model(STEP, FORWARD, BACKWARD)
    a, b = (value.nbytes for value in model.values)
    larger = model.resize({"a": 3 * a})
    assert [value.nbytes for value in larger.values] == [3 * a, 3 * b]
    assert larger.forward.fixed_bytes == (0, 0, 21, 0, 0, 15)
    assert larger.forward.seconds == model.forward.seconds
    smaller = model.resize({"a": a // 2, "b": b // 2})
    assert [value.nbytes for value in smaller.values] == [a // 2, b // 2]
    assert smaller.backward.fixed_bytes == model.backward.fixed_bytes
    assert model.resize({}) == model


def test_a_graph_without_ops() -> None:
    model = build_graph_model(make_step([]), (), ())
    assert model.forward.seconds == model.backward.seconds == (10.0,)
    assert model.values == ()


def test_seconds_on_a_slower_device() -> None:
    model = build_graph_model(STEP, FORWARD, BACKWARD)
    slower = model.scale_seconds(3.0)
    assert slower.forward.seconds == (3.0, 3.0, 6.0, 3.0, 3.0, 12.0)
    assert slower.backward.seconds == (3.0, 3.0, 6.0, 6.0, 6.0, 6.0)
    assert slower.scale_seconds(1 / 3) == model
