"""add_slack: later releases and earlier prefetches, where memory is below the limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from steps import make_link, make_step, make_value, random_links, random_steps

from fxoffload.planner.link import Link
from fxoffload.planner.placement import place_transfers
from fxoffload.planner.simulation import simulate
from fxoffload.planner.slack import add_slack
from fxoffload.planner.step import Residence, Step, Transfer

LINK = make_link(3.0, 3.0)


def loosen(
    step: Step, limit_bytes: int, places: Mapping[str, tuple[int | None, int]], **options: Any
) -> dict[str, tuple[int | None, int]]:
    transfers = {name: Transfer("nvme", *positions) for name, positions in places.items()}
    simulation = simulate(step, transfers, {"nvme": LINK})
    found = add_slack(step, transfers, simulation, limit_bytes=limit_bytes, **options)
    return {name: (transfer.release, transfer.prefetch) for name, transfer in found.items()}


def test_places_stand_as_far_apart_from_transfers_as_memory_allows() -> None:
    """b0 stands at 10; temporaries at 6 and 12 leave no room for the value beside them."""
    step = make_step([make_value("a")], fixed=[Residence("s", 1, 6, 6), Residence("t", 1, 12, 12)])
    assert loosen(step, 100, {"a": (4, 15)}) == {"a": (6, 13)}
    assert loosen(step, 101, {"a": (4, 15)}) == {"a": (9, 10)}
    assert loosen(step, 99, {"a": (4, 15)}) == {"a": (4, 15)}


def test_only_releases_that_block_are_delayed() -> None:
    """A value that is written at 4 is read from then on at the earliest."""
    step = make_step([make_value("a")])
    assert loosen(step, 100, {"a": (None, 15)}) == {"a": (None, 10)}


def test_read_ahead_is_bounded() -> None:
    values = [make_value("a", first_use=9), make_value("b", born=1)]
    places: dict[str, tuple[int | None, int]] = {"a": (9, 17), "b": (9, 15)}
    found = loosen(make_step(values), 1000, places, max_inflight_bytes=199)
    assert found == {"a": (9, 17), "b": (9, 10)}, "a is used when b has been"


def test_reads_keep_their_order() -> None:
    """c was read after the large b, which has no room; it does not overtake it."""
    values = [make_value("b", nbytes=100), make_value("c", born=1, nbytes=10, first_use=9)]
    found = loosen(make_step(values), 109, {"b": (9, 14), "c": (9, 16)})
    assert found["b"][1] == 10
    assert found["c"][1] == 16
    tight = replace(make_step(values), fixed=(Residence("t", 50, 10, 13),))
    assert loosen(tight, 110, {"b": (9, 14), "c": (9, 16)})["c"][1] == 14


def test_places_are_stops() -> None:
    step = replace(make_step([make_value("a")]), stops=(4, 7, 12, 15))
    assert loosen(step, 100, {"a": (4, 15)}) == {"a": (7, 12)}


def draw_plan(
    data: st.DataObject, step: Step, links: Mapping[str, Link]
) -> tuple[dict[str, Transfer], int]:
    """Transfers with a release each, and a limit; memory does not depend on the links' speed."""
    tiers: dict[str, Any] = {v.name: "nvme" for v in step.values if v.refusal is None}
    places = place_transfers(step, tiers, links, budget_bytes=data.draw(st.integers(0, 300)))
    transfers = {name: t for name, t in places.items() if t.release is not None}
    peak_bytes = simulate(step, transfers, links).peak_bytes
    return transfers, peak_bytes + data.draw(st.integers(0, 100))


@settings(deadline=None, max_examples=300)
@given(st.data(), random_steps(), random_links(), st.integers(1, 200))
def test_limit_is_kept_on_every_link(
    data: st.DataObject, step: Step, links: Mapping[str, Link], max_inflight_bytes: int
) -> None:
    transfers, limit_bytes = draw_plan(data, step, links)
    loose = add_slack(
        step,
        transfers,
        simulate(step, transfers, links),
        limit_bytes=limit_bytes,
        max_inflight_bytes=max_inflight_bytes,
    )
    assert list(loose) == list(transfers)
    for name, transfer in loose.items():
        assert transfer.release is not None
        assert (transfers[name].release or 0) <= transfer.release < step.forward_length
        assert step.forward_length + step.backward_inputs <= transfer.prefetch
        assert transfer.prefetch <= transfers[name].prefetch
    for speed in (0.3, 1.0, 3.0):
        other = {
            tier: Link(
                link.write_bytes_per_second * speed,
                link.read_bytes_per_second * speed,
                link.latency_seconds,
            )
            for tier, link in links.items()
        }
        assert simulate(step, loose, other).peak_bytes <= limit_bytes
