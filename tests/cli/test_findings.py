"""A finding is plain data."""

from __future__ import annotations

import dataclasses

from fxoffload.cli.findings import Finding


def test_a_finding_as_data() -> None:
    finding = Finding("torch", "ok", "2.13.0")
    assert dataclasses.asdict(finding) == {
        "subject": "torch",
        "state": "ok",
        "fact": "2.13.0",
        "remedy": "",
    }
    assert finding == Finding("torch", "ok", "2.13.0", "")
