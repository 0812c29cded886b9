"""Small Steps for the tests of the planner, written by hand or random."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from fxoffload.planner.link import Link
from fxoffload.planner.plan import Plan, SavedValue
from fxoffload.planner.plan_writer import write_plan
from fxoffload.planner.residences import find_lower_bound
from fxoffload.planner.selection import choose_transfers
from fxoffload.planner.simulation import simulate
from fxoffload.planner.step import Residence, Step, Transfer

DrawInt = Callable[[int, int], int]
# Predictions for the links as they are, so that plans can be compared with others.
EXACT: dict[str, Any] = {"utilisation": 1.0}


def make_value(name: str, **fields: Any) -> SavedValue:
    """100 bytes, born first and needed last, unless `fields` say otherwise."""
    nbytes = fields.get("nbytes", 100)
    defaults: dict[str, Any] = {
        "members": (name,), "nbytes": nbytes, "member_bytes": nbytes,
        "born": 0, "last_use": 1, "first_use": 8, "freed": 9,
    }  # fmt: skip
    return SavedValue(name=name, **{**defaults, **fields})


def make_step(
    values: Iterable[SavedValue],
    *,
    forward: int | Sequence[float] = 10,
    backward: int | Sequence[float] = 10,
    inputs: tuple[int, int] = (0, 0),
    fixed: Iterable[Residence] = (),
) -> Step:
    """A step of nodes that take one second each, or the given ones; f0, f1, ... and b0, b1, ..."""
    forwards = [1.0] * forward if isinstance(forward, int) else list(forward)
    backwards = [1.0] * backward if isinstance(backward, int) else list(backward)
    return Step(
        names=tuple(
            f"{prefix}{index}"
            for prefix, seconds in (("f", forwards), ("b", backwards))
            for index in range(len(seconds))
        ),
        seconds=(*forwards, *backwards),
        forward_length=len(forwards),
        forward_inputs=inputs[0],
        backward_inputs=inputs[1],
        fixed=tuple(fixed),
        values=tuple(sorted(values, key=lambda value: (value.born, value.name))),
    )


def make_link(write: float, read: float, latency: float = 0.0, compute: float = 0.0) -> Link:
    """By the seconds that 100 bytes take each way, and that they take from compute."""
    return Link(100 / write, 100 / read, latency, compute / 100)


def moved(plan: Plan) -> set[str]:
    """Names of the values that move."""
    return {value.name for value, _ in plan.offloads}


def draw_step(
    draw_int: DrawInt, *, max_values: int = 6, max_nodes: int = 7, refusals: bool = False
) -> Step:
    """A small step: graph inputs, computing nodes of 1 to 4 seconds, an output node, twice.

    max_nodes: of each half. Half of the steps use their values in the opposite order of birth, as
    a backward does.
    """
    num_inputs = (draw_int(0, 1), draw_int(0, 2))
    halves = [
        [
            *[0.0] * inputs,
            *[float(draw_int(1, 4)) for _ in range(draw_int(2, max_nodes - inputs - 1))],
            0.0,
        ]
        for inputs in num_inputs
    ]
    length, backward = len(halves[0]), len(halves[1])
    last = length + backward - 1
    mirrored = draw_int(0, 1)
    values: list[SavedValue] = []
    for index in range(draw_int(1, max_values)):
        born = draw_int(0, length - 2)
        last_use = draw_int(born, min(length - 2, born + 2))
        if mirrored:
            place = (length - 2 - born) / max(1, length - 2)
            first_use = num_inputs[1] + round(place * (backward - 1 - num_inputs[1]))
        else:
            first_use = draw_int(num_inputs[1], backward - 1)
        freed = draw_int(first_use, min(backward - 1, first_use + 2))
        owned = bool(born >= num_inputs[0])
        refused = refusals and draw_int(0, 4) == 0
        values.append(
            make_value(
                f"v{index}", nbytes=draw_int(1, 20), born=born, last_use=last_use,
                first_use=first_use, freed=freed, owned=owned,
                refusal="aliased by an output of the forward" if refused else None,
            )
        )  # fmt: skip
    fixed: list[Residence] = []
    for index in range(draw_int(0, 4)):
        first = draw_int(0, last)
        fixed.append(
            Residence(f"t{index}", draw_int(1, 10), first, draw_int(first, min(last, first + 2)))
        )
    return make_step(values, forward=halves[0], backward=halves[1], inputs=num_inputs, fixed=fixed)


def draw_links(draw_int: DrawInt, *, compute: bool = False) -> dict[str, Link]:
    """A link on which a value of 10 bytes takes 0.2 to 10 seconds."""
    return {
        "nvme": Link(
            write_bytes_per_second=draw_int(1, 50),
            read_bytes_per_second=draw_int(1, 50),
            latency_seconds=draw_int(0, 4) / 4,
            compute_seconds_per_byte=draw_int(0, 4) / 100 if compute else 0.0,
        )
    }


def draw_instance(seed: int) -> tuple[Step, Link, int]:
    """A small step, a link, and a budget that does not hold what the step would take."""
    rng = random.Random(seed)
    while True:
        step = draw_step(rng.randint)
        links = draw_links(rng.randint, compute=rng.random() < 0.3)
        low, high = find_lower_bound(step), simulate(step, {}, links).peak_bytes
        budget_bytes = low + int((high - low) * rng.choice([0.0, 0.1, 0.25, 0.5, 0.75]))
        if budget_bytes < high:
            return step, links["nvme"], budget_bytes


@st.composite
def random_steps(draw: st.DrawFn) -> Step:
    """`draw_step` under hypothesis, refused values among the others."""
    return draw_step(
        lambda low, high: draw(st.integers(low, high)), max_values=8, max_nodes=10, refusals=True
    )


@st.composite
def random_links(draw: st.DrawFn) -> Mapping[str, Link]:
    """`draw_links` under hypothesis."""
    return draw_links(lambda low, high: draw(st.integers(low, high)), compute=True)


def choose_plan(step: Step, links: Mapping[str, Link], **options: Any) -> Plan:
    """What choose_transfers chooses, as a plan."""
    choice = choose_transfers(step, links, **options)
    return write_plan(step, choice, budget_bytes=options.get("budget_bytes"))


@st.composite
def random_transfers(draw: st.DrawFn, step: Step) -> dict[str, Transfer]:
    """Any legal places for some of the values."""
    transfers: dict[str, Transfer] = {}
    for value in step.values:
        if value.refusal is None and draw(st.booleans()):
            places = st.integers(value.last_use + 1, step.forward_length - 1)
            # Where the last node of the forward reads it, there is no place.
            ends = value.last_use + 1 >= step.forward_length
            release = draw(st.none() if ends else st.one_of(st.none(), places))
            start = step.forward_length + step.backward_inputs
            prefetch = draw(st.integers(start, step.first_use(value)))
            transfers[value.name] = Transfer("nvme", release, prefetch)
    return transfers
