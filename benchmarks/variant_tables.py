"""Holds what was measured of variants of a model, and makes the tables that compare them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.fresh_process import Record
from benchmarks.model_arguments import describe_sizes
from benchmarks.runner import Table, describe_spread, format_mib, format_number, format_ratio
from fxoffload.planner.plan import Cut, describe_cut

Kind = Literal[
    "plain",
    "fxoffload",
    "recompute",
    "checkpoint",
    "hooks",
    "save_on_cpu",
    "beside",
    "trl",
    "torch_offload",
]
Share = float | Literal["min"] | None


@dataclass(slots=True)
class Measured:
    """The measurements of one variant.

    refused: the reason why no plan fits, or why a peer cannot run; nothing was measured then.
    seconds: of a step in each round.
    predicted_*: by the plan. lower_bound_bytes: see PassRecord. cut: that of the plan that saves
    most, see Plan. offloaded_bytes, written_bytes, read_bytes, exposed_seconds: of one step.
    batch: where it is another one than that of the record. need_bytes, least_cap: see
    throughput.py.
    """

    label: str
    kind: Kind = "fxoffload"
    share: float | str | None = None
    refused: str | None = None
    peak_bytes: int = 0
    budget_bytes: int | None = None
    predicted_peak_bytes: int | None = None
    predicted_seconds: float | None = None
    lower_bound_bytes: int | None = None
    cut: Cut = None
    offloaded_bytes: int = 0
    written_bytes: int = 0
    read_bytes: int = 0
    exposed_seconds: float = 0.0
    compile_seconds: float = 0.0
    loss: float = 0.0
    seconds: list[float] = field(default_factory=list[float])
    batch: int | None = None
    need_bytes: int = 0
    least_cap: float | None = None

    @property
    def median_seconds(self) -> float:
        """Of a step."""
        return statistics.median(self.seconds)

    def find_ratios(self, other: Measured) -> list[float]:
        """Its seconds over those of `other`, round by round."""
        return [own / its for own, its in zip(self.seconds, other.seconds, strict=True)]


def parse_share(text: str) -> Share:
    """A budget of the command line: "none", "min" or a share; ValueError otherwise."""
    return None if text == "none" else "min" if text == "min" else float(text)


Compare = Callable[[Measured, Measured], str]


def parse_measured(record: Record) -> list[Measured]:
    """The measurements in a record of a benchmark."""
    return [Measured(**item) for item in record["variants"]]


# The cell of each column, from a variant and plain.
COLUMNS: Mapping[str, Compare] = {
    "budget MiB": lambda own, plain: format_mib(own.budget_bytes),
    "peak MiB": lambda own, plain: format_mib(own.peak_bytes),
    "of plain": lambda own, plain: format_ratio(own.peak_bytes, plain.peak_bytes),
    "predicted MiB": lambda own, plain: format_mib(own.predicted_peak_bytes),
    "peak / predicted": lambda own, plain: format_ratio(own.peak_bytes, own.predicted_peak_bytes),
    "lower bound MiB": lambda own, plain: format_mib(own.lower_bound_bytes),
    "peak / bound": lambda own, plain: format_ratio(own.peak_bytes, own.lower_bound_bytes),
    "step s": lambda own, plain: format_number(own.median_seconds),
    "predicted s": lambda own, plain: format_number(own.predicted_seconds),
    "step / predicted": lambda own, plain: format_ratio(own.median_seconds, own.predicted_seconds),
    "step / plain (range)": lambda own, plain: describe_spread(own.find_ratios(plain)),
    "moved MiB": lambda own, plain: format_mib(own.offloaded_bytes),
    "crossing MiB": lambda own, plain: format_mib(own.written_bytes + own.read_bytes),
    "exposed s": lambda own, plain: format_number(own.exposed_seconds),
    "recomputes": lambda own, plain: describe_cut(own.cut),
}


def tabulate_variants(
    record: Record,
    headings: Sequence[str],
    columns: Mapping[str, Compare] | None = None,
    place: str = "",
    caption: str = "",
) -> Table:
    """A row for each variant, with a cell for each of `headings`; none for one that is refused.

    columns: more columns than those of COLUMNS.
    """
    plain, *others = parse_measured(record)
    describes = [{**COLUMNS, **(columns or {})}[heading] for heading in headings]
    rows = [["variant", *headings]]
    for own in (plain, *others):
        if own.refused is None:
            rows.append([own.label, *(describe(own, plain) for describe in describes)])
        else:
            why = "no plan fits" if own.kind == "fxoffload" else own.refused
            rows.append([f"{own.label}: {why}", *[""] * len(headings)])
    return Table(rows, describe_sizes(record) + place, caption)
