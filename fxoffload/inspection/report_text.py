"""A report as plain text for a terminal: verdict, tables, hints."""

from __future__ import annotations

from collections.abc import Sequence

from fxoffload.holders import list_rows
from fxoffload.inspection.report_records import Figures, ReportData
from fxoffload.tables import format_table

MIB = 2**20
# Rows of the longest tables; the JSON and the page have all.
MAX_ROWS = 12


def write_text(data: ReportData) -> str:
    """Everything but the curves, in the order of the page."""
    parts = [
        data.verdict,
        _title("top holders at the peak", list_holders(data)),
        _title("calls", _list_calls(data)),
        _title("largest values", _list_values(data)),
        _title("predicted against measured", list_comparisons(data)),
        describe_wear(data),
        "what to change\n" + "\n".join(f"- {hint}" for hint in data.hints) if data.hints else "",
    ]
    return "\n\n".join(part for part in parts if part)


def list_comparisons(data: ReportData) -> list[tuple[str, str, str]]:
    """Rows of what is predicted and what was measured, with a heading."""

    def tell(figures: Figures | None) -> tuple[str, str, str]:
        if figures is None:
            return "-", "-", "-"
        peak = "-" if figures.peak_bytes is None else f"{figures.peak_bytes / MIB:.1f} MiB"
        seconds = f"{1e3 * figures.step_seconds:.1f} ms"
        return peak, seconds, f"{1e3 * figures.exposed_seconds:.1f} ms"

    names = "peak", "step", "waiting"
    rows = [("", "predicted", "measured")]
    rows += zip(names, tell(data.predicted), tell(data.measured), strict=True)
    for link in data.links:
        seen = link.measured_bytes_per_second
        rows.append(
            (
                f"{link.tier} {link.direction}",
                f"{link.bytes_per_second / 1e9:.2f} GB/s",
                "-" if seen is None else f"{seen / 1e9:.2f} GB/s",
            )
        )
    return rows


def describe_wear(data: ReportData) -> str:
    """What the drives take; "" where nothing is written."""
    wear = data.wear
    if wear is None:
        return ""
    text = (
        f"drive: {wear.written_bytes / 1e9:.3g} GB written in a step of "
        f"{1e3 * wear.step_seconds:.1f} ms"
    )
    if wear.years is None or wear.rating_bytes is None:
        return text
    return f"{text}; {wear.rating_bytes / 1e12:g} TB of rating last {wear.years:.2f} years"


def _title(title: str, rows: Sequence[tuple[str, ...]]) -> str:
    if len(rows) < 2:
        return ""
    more = len(rows) - 1 - MAX_ROWS
    rest = f"\n... and {more} more" if more > 0 else ""
    return f"{title}\n{format_table(rows[: MAX_ROWS + 1])}{rest}"


def list_holders(data: ReportData) -> list[tuple[str, ...]]:
    """What is in memory at the peak, below a row of headings."""
    return list_rows(data.holders)


def _list_calls(data: ReportData) -> list[tuple[str, ...]]:
    rows = [("call", "graph", "forward ms", "backward ms", "saved MiB", "moved MiB", "waits ms")]
    rows += [
        (
            str(each.call),
            each.graph,
            f"{1e3 * each.forward_seconds:.2f}",
            "" if each.backward_seconds is None else f"{1e3 * each.backward_seconds:.2f}",
            f"{each.saved_bytes / MIB:.2f}",
            f"{each.moved_bytes / MIB:.2f}",
            f"{1e3 * each.exposed_seconds:.2f}",
        )
        for each in data.calls
    ]
    return rows


def _list_values(data: ReportData) -> list[tuple[str, ...]]:
    rows = [("MiB", "call", "value", "module", "op", "shape", "decision", "reason", "waits ms")]
    rows += [
        (
            f"{each.nbytes / MIB:.2f}",
            str(each.call),
            each.name,
            each.module,
            each.op,
            each.shape,
            each.decision,
            each.reason,
            f"{1e3 * each.exposed_seconds:.2f}",
        )
        for each in sorted(data.values, key=lambda value: -value.nbytes)
    ]
    return rows
