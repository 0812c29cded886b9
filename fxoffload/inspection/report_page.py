"""A report as one HTML page that needs no network and no other file.

The charts are SVG that is drawn here. A plotting library that draws in the browser is 1 to 5 MB of
code in each page for two charts that never change; matplotlib's SVG has one fixed theme and text
that shrinks with the page. What the page needs of JavaScript, sorting and filtering, is in page.js.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template

from fxoffload.holders import shorten_source
from fxoffload.inspection.report_charts import draw_memory, draw_timeline
from fxoffload.inspection.report_records import ReportData
from fxoffload.inspection.report_text import (
    describe_peak_time,
    describe_wear,
    list_comparisons,
    list_holders,
    write_ms,
)
from fxoffload.sizes import MIB

# Columns that are numbers, and those whose text may break into lines.
_NUMBERS = {"MiB", "call", "graph", "released ms", "prefetched ms", "exposed ms"}
_TEXTS = {"reason"}


def write_page(data: ReportData) -> str:
    """The page: verdict, memory, holders, timeline, values, comparison, wear, what to change."""
    folder = files("fxoffload.inspection") / "page"
    parts = [
        _write_head(data),
        _section("Memory of the step", _write_memory(data)),
        _section("Top holders at the peak", _write_holders(data)),
        _section("Compute and transfers", _write_timeline(data)),
        _section("Values", _write_values(data)),
        _section("Predicted and measured", _tabulate(list_comparisons(data), sortable=False)),
        _section("Drive wear", f"<p>{escape(describe_wear(data) or 'nothing is written')}</p>"),
        _section("What to change", _write_hints(data)),
    ]
    return Template((folder / "page.html").read_text("utf-8")).substitute(
        style=(folder / "page.css").read_text("utf-8"),
        script=(folder / "page.js").read_text("utf-8"),
        body="\n".join(parts),
    )


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>"


def _write_head(data: ReportData) -> str:
    graphs = len({call.graph for call in data.calls})
    facts = [
        "predicted before a run" if data.source == "prediction" else f"after {data.steps} step(s)",
        f"{len(data.calls)} call(s) of {graphs} graph(s)",
        f"moves {data.moved_bytes / MIB:.1f} of {data.saved_bytes / MIB:.1f} MiB saved",
    ]
    if data.ioengine:
        facts.append(f"ioengine {data.ioengine}")
    # The first letter only: capitalize() makes the rest small.
    verdict = data.verdict[:1].upper() + data.verdict[1:] + "."
    return (
        f"<header><h1>{escape(verdict)}</h1>"
        f'<p class="faint">{escape("; ".join(facts))}</p></header>'
    )


def _write_memory(data: ReportData) -> str:
    names = {"moved": "predicted", "unmoved": "predicted with nothing moved"}
    if data.budget_bytes is not None:
        names["budget"] = f"budget, {data.budget_bytes / MIB:.1f} MiB"
    if any(point.measured_bytes is not None for point in data.memory):
        names["measured"] = "measured, highest seen up to the next op"
    return (
        _write_legend(names)
        + draw_memory(data)
        + '<p class="faint">What the step adds to the device\'s memory, over its time. The curve '
        "with nothing moved is drawn over the same nodes.</p>"
    )


def _write_holders(data: ReportData) -> str:
    at = f'<p class="faint">At the predicted peak, {describe_peak_time(data)}.</p>'
    return at + _tabulate(list_holders(data))


def _write_timeline(data: ReportData) -> str:
    names = {"forward": "forward", "backward": "backward", "write": "offload"}
    names |= {"read": "prefetch", "wait": "the compute waits", "idle": "no transfer"}
    return (
        _write_legend(names)
        + draw_timeline(data)
        + '<p class="faint">As predicted by the measured speeds; point at a bar for its value. '
        "A trace with all of it: <code>report.save_trace</code>.</p>"
    )


def _write_legend(names: dict[str, str]) -> str:
    lines = {"moved", "unmoved", "budget"}

    def draw(kind: str) -> str:
        if kind in lines:
            return f'<line class="{kind}" x1="0" y1="5" x2="30" y2="5"/>'
        if kind == "measured":
            return '<line class="measured" x1="15" y1="5" x2="15" y2="5"/>'
        return f'<rect class="{kind}" width="30" height="10"/>'

    keys = [
        f'<span><svg viewBox="0 0 30 10" aria-hidden="true">{draw(kind)}</svg>{escape(name)}</span>'
        for kind, name in names.items()
    ]
    return f'<div class="legend">{"".join(keys)}</div>'


def _write_values(data: ReportData) -> str:
    heading = (
        "call", "graph", "value", "module", "op", "shape", "dtype", "MiB", "decision", "reason",
        "released ms", "prefetched ms", "exposed ms", "source",
    )  # fmt: skip
    rows = [heading]
    rows += [
        (
            str(each.call), each.graph, each.name, each.module, each.op, each.shape, each.dtype,
            f"{each.nbytes / MIB:.2f}", each.decision, each.reason, write_ms(each.released),
            write_ms(each.prefetched), write_ms(each.exposed_seconds),
            shorten_source(each.source),
        )
        for each in data.values
    ]  # fmt: skip
    return (
        '<input data-filters="values" data-counts="shown" type="search" aria-label="filter values" '
        'placeholder="filter: words, such as nvme silu">'
        '<p class="faint" id="shown"></p>' + _tabulate(rows, name="values")
    )


def _tabulate(rows: Sequence[tuple[str, ...]], *, name: str = "", sortable: bool = True) -> str:
    heading, *body = rows
    classes = [
        "number" if each in _NUMBERS else "text" if each in _TEXTS else "" for each in heading
    ]
    heads = [f"<button>{escape(each)}</button>" if sortable else escape(each) for each in heading]
    mark = " data-sortable" if sortable else ""
    return (
        f'<div class="scroll"><table{f" id={name}" if name else ""}{mark}><thead>'
        f"{_write_row('th', heads, classes)}</thead><tbody>\n"
        + "\n".join(_write_row("td", map(escape, row), classes) for row in body)
        + "\n</tbody></table></div>"
    )


def _write_row(tag: str, cells: Iterable[str], classes: Sequence[str]) -> str:
    return (
        "<tr>"
        + "".join(
            f'<{tag} class="{kind}">{cell}</{tag}>' if kind else f"<{tag}>{cell}</{tag}>"
            for cell, kind in zip(cells, classes, strict=True)
        )
        + "</tr>"
    )


def _write_hints(data: ReportData) -> str:
    if not data.hints:
        return "<p>Nothing stands out.</p>"
    items = (re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(hint)) for hint in data.hints)
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"
