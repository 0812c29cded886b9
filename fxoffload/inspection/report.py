"""Report: what a step does, value by value, as a record, a text, a page, or a trace.

print(fxoffload.report())                          of a job that runs
fxoffload.explain(model, x).report()               before it runs
report.save_html("report.html")                    a page that needs nothing else
report.save_trace("trace.json")                    for Perfetto
Report.from_json(Path("report.json").read_text())  one that was saved by to_json
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fxoffload import runtime
from fxoffload.errors import ReportError
from fxoffload.inspection.report_builder import build_report
from fxoffload.inspection.report_page import write_page
from fxoffload.inspection.report_records import ReportData, decode_record, encode_record
from fxoffload.inspection.report_text import write_text
from fxoffload.inspection.report_trace import list_events, merge_profile
from fxoffload.step_schedules import ScheduledStep, find_steps


@dataclass(frozen=True, slots=True)
class Report(ReportData):
    """What a step does and takes, see ReportData for its fields; `print` it for tables."""

    def __str__(self) -> str:
        return write_text(self)

    def to_json(self) -> str:
        """All fields as JSON, under their names; `version` changes when a key changes meaning."""
        return encode_record(self)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that to_json wrote. Raises ReportError for any other text."""
        return decode_record(cls, text)

    def save_html(self, path: str | Path) -> None:
        """Write one page that opens in a browser without a network."""
        Path(path).write_text(write_page(self), encoding="utf-8")

    def save_trace(self, path: str | Path, profile: str | Path | None = None) -> None:
        """Write the predicted step as Chrome trace events, which Perfetto opens.

        profile: a trace that torch.profiler exported of this program, from the begin of a step on;
        its events are written, too, at the same times. Raises ReportError where it is no such file.
        Source of the format: "Trace Event Format", the JSON object format of Chrome's tracing.
        """
        trace: dict[str, Any] = {"displayTimeUnit": "ms", "traceEvents": list_events(self)}
        if profile is not None:
            trace = merge_profile(self, _read_profile(Path(profile)))
        Path(path).write_text(json.dumps(trace), encoding="utf-8")


def _read_profile(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):  # As torch writes it under a name that ends in .gz.
            content = gzip.decompress(content)
        return dict(json.loads(content))
    except (OSError, ValueError, TypeError) as error:
        raise ReportError(
            f"{path} is no trace of a profiler ({error}); pass what export_chrome_trace wrote"
        ) from error


def report() -> Report:
    """Report the program that this thread ran last, of those that have a schedule.

    The figures are those of steps that have ended and of which a later one has begun. Raises
    ReportError before that.
    """
    steps = find_steps()
    if not steps:
        raise ReportError(
            "no step of this thread has a schedule yet: run at least two steps of a model that is "
            'compiled with backend="fxoffload" in the thread that calls report(); before a run, '
            "fxoffload.explain(...).report() predicts one"
        )
    return make_report(steps[0], runtime.statistics().ioengine)


def make_report(step: ScheduledStep, ioengine: str) -> Report:
    """The report of `step`. ioengine: the engine that moves its values."""
    data = build_report(step, ioengine)
    return Report(**{each.name: getattr(data, each.name) for each in fields(data)})
