"""A report as plain text for a terminal: verdict, tables, hints."""

from __future__ import annotations

from collections.abc import Sequence

from fxoffload.holders import list_rows
from fxoffload.inspection.report_records import Figures, ReportData
from fxoffload.sizes import MIB
from fxoffload.tables import format_table

# Rows of the longest tables; the JSON and the page have all.
MAX_ROWS = 12


def write_text(data: ReportData) -> str:
    """Everything but the curves, in the order of the page."""
    parts = [
        data.verdict,
        _title(f"top holders at the peak, {describe_peak_time(data)}", list_holders(data)),
        _title("calls", _list_calls(data)),
        _title("tiers, as predicted", _list_tiers(data)),
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


def describe_peak_time(data: ReportData) -> str:
    """When the predicted peak is."""
    return f"{1e3 * data.peak_seconds:.1f} ms after the step begins"


def list_holders(data: ReportData) -> list[tuple[str, ...]]:
    """What is in memory at the peak, below a row of headings."""
    return list_rows(data.holders)


def _list_calls(data: ReportData) -> list[tuple[str, ...]]:
    heading = (
        "call", "graph", "forward at ms", "for ms", "backward at ms", "for ms",
        "saved MiB", "moved MiB", "waits ms",
    )  # fmt: skip
    rows = [heading]
    rows += [
        (
            str(each.call),
            each.graph,
            write_ms(each.forward_start),
            write_ms(each.forward_seconds),
            write_ms(each.backward_start),
            write_ms(each.backward_seconds),
            f"{each.saved_bytes / MIB:.2f}",
            f"{each.moved_bytes / MIB:.2f}",
            write_ms(each.exposed_seconds),
        )
        for each in data.calls
    ]
    return rows


def _list_tiers(data: ReportData) -> list[tuple[str, ...]]:
    """What each tier moves, and how long it neither writes nor reads."""
    rows = [("tier", "written MiB", "read MiB", "idle ms", "of step", "longest idle ms")]
    for tier in data.tiers:
        nbytes = {k.direction: k.nbytes for k in data.links if k.tier == tier}
        idle = data.find_idle(tier)
        seconds = sum(end - start for start, end in idle)
        start, end = max(idle, key=lambda times: times[1] - times[0], default=(0.0, 0.0))
        rows.append(
            (
                tier,
                f"{nbytes['write'] / MIB:.2f}",
                f"{nbytes['read'] / MIB:.2f}",
                write_ms(seconds),
                f"{seconds / data.predicted.step_seconds:.0%}",
                f"{write_ms(end - start)} from {write_ms(start)}",
            )
        )
    return rows


def write_ms(seconds: float | None) -> str:
    """Milliseconds with two digits; "" for None."""
    return "" if seconds is None else f"{1e3 * seconds:.2f}"


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
            write_ms(each.exposed_seconds),
        )
        for each in sorted(data.values, key=lambda value: -value.nbytes)
    ]
    return rows
