"""Reports survive JSON, and other texts are refused in words."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace

import pytest
from reports import make_data

from fxoffload.errors import ReportError
from fxoffload.inspection.report_records import (
    VERSION,
    Figures,
    ReportData,
    Span,
    Wear,
    decode_record,
    encode_record,
)


def test_a_report_comes_back_from_its_json() -> None:
    for measured in (None, Figures(None, 3.0, 2.0, 1.0), Figures(7, 3.0, 2.0, 1.0)):
        for wear in (None, Wear(10, 1.5), Wear(10, 1.5, 600, 2.0)):
            data = replace(make_data(), measured=measured, wear=wear)
            assert data.spans
            assert decode_record(ReportData, encode_record(data)) == data


def test_the_keys_are_the_fields() -> None:
    data = make_data()
    record = json.loads(encode_record(data))
    assert list(record) == [each.name for each in fields(ReportData)]
    assert record["version"] == VERSION
    assert record["values"][0] == asdict(data.values[0])
    assert record["predicted"]["peak_bytes"] == data.predicted.peak_bytes


def test_keys_of_a_later_version_are_left_out() -> None:
    data = make_data()
    record = {**json.loads(encode_record(data)), "weather": "fine"}
    assert decode_record(ReportData, json.dumps(record)) == data


def test_keys_that_an_earlier_version_did_not_write_have_defaults() -> None:
    data = make_data()
    record = json.loads(encode_record(data))
    for span in record["spans"]:
        del span["thread"]
    assert decode_record(ReportData, json.dumps(record)) == data


@pytest.mark.parametrize("text", ["", "[]", "{}", '"x"', '{"version": 1}', "7"])
def test_other_texts_are_no_reports(text: str) -> None:
    with pytest.raises(ReportError, match=r"this is no report .*: pass what Report.to_json"):
        decode_record(ReportData, text)


def test_another_version_is_named() -> None:
    record = {**json.loads(encode_record(make_data())), "version": VERSION + 1}
    words = f"version {VERSION + 1}, and this fxoffload reads version {VERSION}"
    with pytest.raises(ReportError, match=words):
        decode_record(ReportData, json.dumps(record))


def test_a_tier_is_idle_where_neither_of_its_directions_transfers() -> None:
    """A wait is no transfer, and another tier does not count."""
    spans = (
        Span("write", 0, "a", "nvme", 1, 2.0, 6.0),
        Span("read", 0, "a", "nvme", 1, 3.0, 4.0),
        Span("write", 0, "c", "host", 1, 0.0, 5.0),
        Span("wait", 0, "b", "nvme", 1, 6.5, 7.0),
        Span("read", 0, "b", "nvme", 1, 7.0, 9.0),
    )
    data = replace(make_data(), spans=spans, predicted=Figures(1, 10.0, 9.5, 0.5))
    assert data.tiers == ("nvme", "host")
    assert data.find_idle("nvme") == [(0.0, 2.0), (6.0, 7.0), (9.0, 10.0)]
    assert data.find_idle("host") == [(5.0, 10.0)]
    spans = (Span("write", 0, "a", "nvme", 1, 0.0, 10.0),)
    assert replace(data, spans=spans).find_idle("nvme") == []


def test_slowdown_is_a_share_of_the_compute() -> None:
    assert Figures(1, 3.0, 2.0, 1.0).slowdown == 0.5
    assert Figures(1, 0.0, 0.0, 0.0).slowdown == 0.0
