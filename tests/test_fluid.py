from __future__ import annotations

import random
from math import inf

import pytest
from steps import draw_links, draw_step, make_step, make_value

from fxoffload.planner.bound import find_least_peak, find_least_seconds
from fxoffload.planner.fluid import build_fluid
from fxoffload.planner.linear_program import LinearProgram
from fxoffload.planner.link import Link
from fxoffload.planner.moments import find_live_bytes
from fxoffload.planner.residences import find_lower_bound
from fxoffload.planner.simulation import simulate
from fxoffload.planner.step import Step


def solve_by_value(step: Step, link: Link, budget_bytes: int | None) -> float:
    """The seconds under a budget; without one, the peak without waiting.

    What the fluid program sums up is said of each value: the bytes of it that are written and read
    in front of every node and beside it.
    """
    program = LinearProgram()
    peak = program.add_variable()
    if budget_bytes is not None:
        program.require([(peak, 1.0)], upper=budget_bytes)
    count = len(step.seconds)
    waits = [program.add_variable(upper=inf if budget_bytes else 0.0) for _ in range(count)]
    away: list[list[int]] = [[] for _ in range(count)]
    flows: dict[tuple[float, str, int], list[int]] = {}
    for value in step.movable:
        used = step.first_use(value)
        moved = program.add_variable(upper=value.nbytes)
        parts: dict[tuple[str, str], dict[int, int]] = {}
        for way, speed in ("w", link.write_bytes_per_second), ("r", link.read_bytes_per_second):
            gaps = {p: program.add_variable() for p in range(value.born + 1, used + 1)}
            nodes = {p: program.add_variable() for p in range(value.born + 1, used)}
            parts[way, "gap"], parts[way, "node"] = gaps, nodes
            both = [*gaps.values(), *nodes.values()]
            program.require([(moved, -1.0), *((v, 1.0) for v in both)], lower=0.0, upper=0.0)
            for place, variables in ("gap", gaps), ("node", nodes):
                for position, variable in variables.items():
                    flows.setdefault((speed, way + place, position), []).append(variable)
        for position in range(value.last_use + 1, used):
            here = program.add_variable()
            written = [v for p, v in parts["w", "gap"].items() if p <= position]
            written += [v for p, v in parts["w", "node"].items() if p < position]
            unread = [v for p, v in parts["r", "gap"].items() if p > position]
            unread += [v for p, v in parts["r", "node"].items() if p > position]
            both = [(v, 1.0) for v in (*written, *unread)]
            program.require([(here, -1.0), (moved, -1.0), *both], lower=0.0)
            away[position].append(here)
    for (speed, kind, position), variables in flows.items():
        wait = [(waits[position], -speed)] if kind.endswith("gap") else []
        compute = 0.0 if kind.endswith("gap") else speed * step.seconds[position]
        program.require([*((v, 1.0) for v in variables), *wait], upper=compute)
    for variables, nbytes in zip(away, find_live_bytes(step), strict=True):
        program.require([*((v, 1.0) for v in variables), (peak, 1.0)], lower=nbytes)
    if budget_bytes is None:
        return program.minimise([peak])
    return step.compute_seconds + program.minimise(waits)


@pytest.mark.parametrize("seed", range(4))
def test_little_is_lost_by_summing_up(seed: int):
    """Nothing at all, but where an early value is read for longer than a later one."""
    rng = random.Random(seed)
    equal = 0
    for _ in range(25):
        step = draw_step(rng.randint, max_values=8, max_nodes=10, refusals=True)
        links = draw_links(rng.randint)
        lowest, highest = find_lower_bound(step), simulate(step, {}, {}).peak_bytes
        budget_bytes = lowest + int((highest - lowest) * rng.choice([0.0, 0.25, 0.5]))
        peak = find_least_peak(step, links)
        seconds = find_least_seconds(step, links, budget_bytes=budget_bytes)
        exact_peak = solve_by_value(step, links["nvme"], None)
        exact_seconds = solve_by_value(step, links["nvme"], budget_bytes)
        assert peak < exact_peak + 1.0  # A plan's peak is a whole number of bytes.
        assert seconds <= exact_seconds * (1 + 1e-6)
        close = seconds == pytest.approx(exact_seconds, rel=1e-4)
        equal += peak > exact_peak - 0.01 and close
    assert equal >= 22


def test_a_value_that_nothing_reads_has_no_fluid_program():
    """What moves comes back in it, so that it would be no bound."""
    read, unread = make_value("read"), make_value("unread", first_use=5, freed=4)
    with pytest.raises(AssertionError, match=r"no backward reads \['unread'\]"):
        build_fluid(make_step([read, unread]), {"nvme": Link(1.0, 1.0, 0.0)}, peak_bytes=100)
    build_fluid(make_step([read]), {"nvme": Link(1.0, 1.0, 0.0)}, peak_bytes=100)
