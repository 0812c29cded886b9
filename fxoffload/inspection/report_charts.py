"""The two charts of a report's page, as inline SVG: the memory of a step, and its timeline.

The drawings stretch to the width of the page; texts are beside them in HTML, so that they keep
their size and never overlap. Colours are classes of page.css, so that both themes have their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, log10

from fxoffload.inspection.report_records import MemoryPoint, ReportData, Span
from fxoffload.inspection.report_trace import TRACKS
from fxoffload.sizes import MIB

# Of the drawings, in their own units.
WIDTH, HEIGHT = 1000.0, 100.0
# Points of a curve; of more, each column of the drawing has its highest.
MAX_POINTS = 1500
TICKS = 5
# A wait or a transfer is at least so wide, so that it can be seen.
LEAST_WIDTH = 0.8
# Between a bar and the next, where the bar is several times as wide.
GAP = 1.0


def draw_memory(data: ReportData) -> str:
    """Curves of the step's memory, moved and unmoved, points that were measured, the budget."""
    end = data.predicted.step_seconds
    tops = [data.unmoved_peak_bytes, data.budget_bytes or 0, data.predicted.peak_bytes or 0]
    tops += [point.measured_bytes or 0 for point in data.memory]
    top = find_ceiling(max(tops) / MIB) * MIB

    def place(seconds: float, nbytes: float) -> str:
        x = WIDTH * seconds / end if end else 0.0
        y = HEIGHT * (1.0 - min(1.0, max(0.0, nbytes / top)))
        return f"{x:.1f},{y:.2f}"

    points = _thin(data.memory)
    unmoved = " ".join(place(point.seconds, point.unmoved_bytes) for point in points)
    moved = " ".join(place(point.seconds, point.nbytes) for point in points)
    drawn = [
        f'<polyline class="unmoved" points="{unmoved}"/>',
        f'<polyline class="moved" points="{moved}"/>',
    ]
    if data.budget_bytes is not None:
        left, right = place(0.0, data.budget_bytes), place(end, data.budget_bytes)
        drawn.append(f'<polyline class="budget" points="{left} {right}"/>')
    for point in points:
        if point.measured_bytes is not None:
            # A line without length is a round dot, whatever the drawing is stretched to.
            at = place(point.seconds, point.measured_bytes)
            drawn.append(f'<polyline class="measured" points="{at} {at}"/>')
    steps = [top * (TICKS - 1 - index) / (TICKS - 1) / MIB for index in range(TICKS)]
    labels = [f"{step:.4g} MiB" for step in steps]
    return (
        '<div class="chart"><div class="ticks y">'
        + "".join(f"<span>{label}</span>" for label in labels)
        + f"</div>{_svg('plot', 'memory of the step', drawn)}{_draw_clock(end)}</div>"
    )


def draw_timeline(data: ReportData) -> str:
    """Rows: the compute, and for each tier offloads, prefetches, waits, and its idle times."""
    end = data.predicted.step_seconds

    def draw(kind: str, tier: str = "") -> list[str]:
        found = [span for span in data.spans if (span.kind, span.tier) == (kind, tier)]
        return [_draw_span(span, end) for span in found]

    rows = [("compute", draw("compute"))]
    for tier in data.tiers:
        rows += [(f"{track} {tier}", draw(kind, tier)) for kind, track in TRACKS.items()]
        idle = [_draw_bar("idle", f"{tier} idle", *times, end) for times in data.find_idle(tier)]
        rows.append((f"idle {tier}", idle))
    drawn = [
        f'<div class="label">{escape(label)}</div>{_svg("track", label, bars)}'
        for label, bars in rows
    ]
    return f'<div class="chart">{"".join(drawn)}{_draw_clock(end)}</div>'


def find_ceiling(number: float) -> float:
    """The next round number, not below `number`: a digit or two, divisible by the ticks."""
    if number <= 0:
        return 1.0
    unit = 10.0 ** (ceil(log10(number)) - 1)
    return next(
        step * unit for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 5, 6, 8, 10) if step * unit >= number
    )


def tell_ms(number: float) -> str:
    """Three digits, and no powers of ten."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _thin(memory: Sequence[MemoryPoint]) -> list[MemoryPoint]:
    """At most MAX_POINTS of `memory`: the highest of each part, so that no peak is lost."""
    size = ceil(len(memory) / MAX_POINTS)
    if size <= 1:
        return list(memory)
    parts = [memory[start : start + size] for start in range(0, len(memory), size)]
    return [max(part, key=lambda point: point.nbytes) for part in parts]


def _draw_span(span: Span, end: float) -> str:
    name, kind = f"call {span.call}", span.kind
    if kind == "compute":
        kind = "forward" if span.forward else "backward"
        name = f"{kind} of {name}"
    else:
        name = f"{TRACKS[kind]} {span.name} of {name}, {span.nbytes / MIB:.2f} MiB"
    return _draw_bar(kind, name, span.start, span.end, end)


def _draw_bar(kind: str, name: str, start: float, stop: float, end: float) -> str:
    """A bar from `start` to `stop` seconds of a step that ends at `end`; `name` is its tooltip."""
    left = WIDTH * start / end if end else 0.0
    width = max(LEAST_WIDTH, WIDTH * (stop - start) / end if end else 0.0)
    width -= GAP if width > 4 * GAP else 0.0
    times = f"{1e3 * start:.2f} to {1e3 * stop:.2f} ms"
    return (
        f'<rect class="{kind}" x="{left:.2f}" y="0" width="{width:.2f}" height="{HEIGHT:g}">'
        f"<title>{escape(name)}, {times}</title></rect>"
    )


def _svg(kind: str, label: str, drawn: Sequence[str]) -> str:
    return (
        f'<svg class="{kind}" role="img" aria-label="{escape(label)}" '
        f'viewBox="0 0 {WIDTH:g} {HEIGHT:g}" preserveAspectRatio="none">{"".join(drawn)}</svg>'
    )


def _draw_clock(end: float) -> str:
    """Labels of the axis of time."""
    times = [1e3 * end * index / (TICKS - 1) for index in range(TICKS)]
    return (
        '<div class="ticks x">'
        + "".join(
            f"<span>{tell_ms(time)}{' ms' if time == times[-1] else ''}</span>" for time in times
        )
        + "</div>"
    )
