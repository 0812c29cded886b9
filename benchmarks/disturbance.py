"""Schedules on other links, and over nodes of other seconds, than they were made for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from random import Random

from benchmarks.fresh_process import Record
from benchmarks.runner import Column
from fxoffload import BudgetError
from fxoffload.planner.link import Link
from fxoffload.planner.placement import place_transfers
from fxoffload.planner.search import Trial
from fxoffload.planner.selection import LINK_UTILISATION, choose_transfers, derate_links
from fxoffload.planner.simulation import simulate
from fxoffload.planner.step import Step, Transfer

SPEEDS = (0.6, 1.0, 1.4)  # Shares of the speed of links.
NOISE = 0.2
MAX_LOSS = 0.03  # Of the step: what a schedule for other links may lose.


def disturb(
    step: Step, links: Mapping[str, Link], shares: Sequence[float], max_inflight_bytes: int | None
) -> list[Record]:
    """A row for each budget, a share of the unmoved peak, and each speed, a share of the links'.

    A schedule says at which op a write is waited for and a read is started, so a slow link costs
    time and no memory. Time lost is against a schedule that is made for the other link, over the
    same nodes: one of its own values, and one that moves the same values.
    """
    unmoved_bytes = simulate(step, {}, links).peak_bytes
    random = Random(0)
    noisy = replace(
        step, seconds=tuple(s * random.uniform(1 - NOISE, 1 + NOISE) for s in step.seconds)
    )
    cap_bytes = step.find_inflight_cap(max_inflight_bytes)
    rows: list[Record] = []
    for share, speed in product(shares, SPEEDS):
        real = {tier: scale(link, speed) for tier, link in links.items()}
        limits = {"budget_bytes": int(share * unmoved_bytes), "max_inflight_bytes": cap_bytes}
        try:
            assumed, other = (
                choose_transfers(step, known, **limits).best for known in (links, real)
            )
        except BudgetError:
            continue  # The table of limits says that none fits.
        placed = place_transfers(
            step,
            {name: transfer.tier for name, transfer in assumed.transfers.items()},
            derate_links(real, LINK_UTILISATION),
            budget_bytes=limits["budget_bytes"],
            max_inflight_bytes=cap_bytes,
        )
        found, made, same = (
            simulate(noisy, transfers, real, max_inflight_bytes=cap_bytes)
            for transfers in (write_waits(step, assumed), write_waits(step, other), placed)
        )
        rows.append(
            {
                "budget": share,
                "speed": speed,
                "peak": found.peak_bytes / unmoved_bytes,
                "step": found.step_seconds / noisy.compute_seconds,
                "made for": made.step_seconds / noisy.compute_seconds,
                "same values": same.step_seconds / noisy.compute_seconds,
                "moved": found.written_bytes / unmoved_bytes,
                "moved for": made.written_bytes / unmoved_bytes,
            }
        )
    return rows


def write_waits(step: Step, trial: Trial) -> dict[str, Transfer]:
    """The transfers as ops carry them out: each write is waited for, in the backward if need be."""
    found = dict(trial.transfers)
    for value in step.values:
        transfer = found.get(value.name)
        if transfer is not None and transfer.release is None:
            turn = step.find_turn(value)
            wait = max(trial.simulation.written_positions[value.name], turn)
            if wait < step.first_use(value):
                found[value.name] = replace(transfer, release=wait)
    return found


def scale(link: Link, speed: float) -> Link:
    """`link` with a share of its bandwidth."""
    return replace(
        link,
        write_bytes_per_second=speed * link.write_bytes_per_second,
        read_bytes_per_second=speed * link.read_bytes_per_second,
    )


COLUMNS: Sequence[Column[Record]] = (
    ("device", lambda row: row["device"]),
    ("model", lambda row: row["model"]),
    ("budget", lambda row: str(row["budget"])),
    ("speed of links", lambda row: str(row["speed"])),
    ("peak", lambda row: f"{row['peak']:.3f}"),
    ("step", lambda row: f"{row['step']:.3f}"),
    ("moved", lambda row: f"{row['moved']:.3f}"),
    ("of a schedule for these", lambda row: f"{row['made for']:.3f}"),
    ("that moves", lambda row: f"{row['moved for']:.3f}"),
    ("of the same values for these", lambda row: f"{row['same values']:.3f}"),
    ("lost", lambda row: f"{row['step'] - row['made for']:+.3f}"),
)


def find_misses(row: Record) -> list[str]:
    """Budgets that are exceeded, and more time lost than MAX_LOSS."""
    place = f"{row['model']} on {row['device']}, {row['budget']}, links of {row['speed']}"
    misses: list[str] = []
    if row["peak"] > row["budget"]:
        misses.append(f"{place}: a peak of {row['peak']:.3f}")
    if row["step"] > row["made for"] + MAX_LOSS:
        misses.append(f"{place}: a step of {row['step']:.3f}, not {row['made for']:.3f}")
    return misses
