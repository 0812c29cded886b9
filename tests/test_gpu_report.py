"""benchmarks/gpu_report.py: verdicts and tables of made-up records."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks import gpu_report
from benchmarks.variant_tables import Kind, Measured, Share
from benchmarks.variants import PLAIN_AGAIN, Variant

ROUNDS = 4


def make(kind: Kind, peak: int, seconds: float, share: Share = None, **others: Any) -> Any:
    """The measurement of a variant, and its seconds of a step."""
    label = others.pop("label", Variant(kind, share).label)
    return Measured(label, kind, share, peak_bytes=peak, **others), seconds


def make_section(*found: Any) -> dict[str, Any]:
    """A section as the suite records it."""
    records: list[dict[str, Any]] = [asdict(measured) for measured, _ in found]
    seconds = {measured.label: s for measured, s in found if measured.refused is None}
    records += [{"round": number, "seconds": seconds} for number in range(ROUNDS)]
    return {"status": "ok", "records": [*records, {"overlap_share": 0.9}]}


def make_record(**sections: Any) -> dict[str, Any]:
    return {"device": "NVIDIA H200", "driver": "580", "torch": "2.11", "sections": sections}


PLAIN = make("plain", 1000, 1.0)
AGAIN = make("plain", 1000, 1.02, label=PLAIN_AGAIN.label)
CHECKPOINT = make("checkpoint", 500, 1.3)
REFUSED = make("trl", 0, 0.0, refused="needs a GPU")


def judge(section: str, *found: Any) -> dict[str, dict[str, Any]]:
    """The verdicts on a section, by label."""
    rows = gpu_report.judge(make_record(**{section: make_section(*found)}))
    return {row["label"]: row for row in rows}


def test_points_are_judged_against_the_fastest_peer_at_their_peak() -> None:
    verdicts = judge(
        "gpt",
        PLAIN,
        AGAIN,
        make("fxoffload", 640, 1.02),
        make("fxoffload", 510, 1.2, 0.5),
        make("fxoffload", 500, 1.31, 0.4),
        make("fxoffload", 500, 1.4, 0.3),
        make("fxoffload", 400, 2.0, "min"),
        make("fxoffload", 0, 0.0, 0.2, refused="no budget that low"),
        CHECKPOINT,
        REFUSED,
    )
    found = {label: (row["rival"], row["verdict"]) for label, row in verdicts.items()}
    assert found == {
        "fxoffload": ("checkpoint", "faster"),
        "fxoffload 0.5": ("checkpoint", "faster"),
        "fxoffload 0.4": ("checkpoint", "equal"),  # Plain differs from itself by as much.
        "fxoffload 0.3": ("checkpoint", "slower"),
        "fxoffload min": (None, "alone"),
    }
    free = verdicts["fxoffload"]
    assert (free["peak"], free["step"], free["rival_step"]) == (0.64, 1.02, 1.3)
    assert (free["plain_seconds"], free["plain_peak_bytes"]) == (1.0, 1000)
    assert free["as_asked"] is True
    assert "as_asked" not in verdicts["fxoffload 0.5"]


@pytest.mark.parametrize(("peak", "seconds"), [(650, 1.0), (600, 1.03)])
def test_what_is_asked_of_a_step_without_a_budget(peak: int, seconds: float) -> None:
    assert judge("gpt", PLAIN, make("fxoffload", peak, seconds))["fxoffload"]["as_asked"] is False


@pytest.mark.parametrize(
    ("peak", "seconds", "true"), [(1.019, 0.951, True), (1.03, 1.0, False), (1.0, 1.06, False)]
)
def test_measured_against_predicted(peak: float, seconds: float, true: bool) -> None:
    numbers = {"predicted_peak_bytes": 1000, "predicted_seconds": 2.0}
    row = judge("bert", PLAIN, make("fxoffload", round(1000 * peak), 2.0 * seconds, **numbers))
    found = row["fxoffload"]
    assert found["peak_error"] == pytest.approx(peak - 1)
    assert found["step_error"] == pytest.approx(seconds - 1)
    assert found["true"] is true


def test_without_a_prediction_nothing_is_true_or_false() -> None:
    assert judge("t5", PLAIN, make("fxoffload", 900, 1.0))["fxoffload"]["true"] is None


def test_nothing_is_judged_that_was_not_timed() -> None:
    section = make_section(PLAIN, make("fxoffload", 900, 1.0))
    section["records"] = [each for each in section["records"] if "round" not in each]
    assert list(gpu_report.judge(make_record(gpt=section, bert={"status": "skipped"}))) == []


@pytest.mark.parametrize(
    ("peak", "seconds", "asked"), [(900, 5.2, True), (901, 5.0, False), (900, 5.3, False)]
)
def test_steps_that_a_drive_limits(peak: int, seconds: float, asked: bool) -> None:
    """1,000 bytes each way at 400 bytes a second take five."""
    moved = {"written_bytes": 1000, "read_bytes": 1000, "budget_bytes": 900}
    section = make_section(PLAIN, make("fxoffload", peak, seconds, 0.9, **moved))
    for name, speed in {"posix": 400.0, "kvikio": 300.0}.items():
        speeds = {"write": 500.0, "read": speed}
        section["records"].insert(0, {"ioengine": name, "bytes_per_second": speeds})
    section["records"].insert(0, {"ioengine": "other", "unavailable": "no luck"})
    (row,) = gpu_report.judge(make_record(nvme=section))
    assert row["budget_kept"] is (peak == 900)
    assert row["step_over_least"] == pytest.approx(seconds / 5.0)
    assert row["as_asked"] is asked


def test_caps_are_judged() -> None:
    def at(kind: Kind, batch: int, seconds: float, cap: float | None, share: Share = None) -> Any:
        label = f"{Variant(kind, share).label}, batch {batch}"
        others = {"label": label, "batch": batch, "least_cap": cap, "need_bytes": 100}
        return make(kind, 100, seconds, share, **others)

    section = make_section(
        at("plain", 4, 4.0, 1.0),
        at("checkpoint", 4, 5.0, 0.5),
        at("fxoffload", 4, 4.0, 0.5, 0.5),
        at("fxoffload", 4, 4.0, 1.0, 1.0),
    )
    section["records"].insert(0, {"caps": [1.0, 0.5]})
    (row,) = gpu_report.judge(make_record(throughput=section))
    assert [each["ratio"] for each in row["caps"]] == [1.0, 1.25]
    assert row["verdict"] == "met: 1.15x the best peer at 50%, alone at no cap, below it at no cap"


def test_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    predicted = tmp_path / "predicted.json"
    monkeypatch.setattr(gpu_report, "PREDICTED", predicted)
    rows = [
        {"model": "gpt", "label": "plain", "peak": 1.0, "step": 1.0},
        {"model": "gpt", "label": "fxoffload", "peak": 0.61, "step": 1.001},
        {"model": "bert", "label": "fxoffload", "peak": 0.5, "step": None},
    ]
    predicted.write_text(json.dumps({"rows": rows}))
    section = make_section(PLAIN, AGAIN, make("fxoffload", 640, 1.02), CHECKPOINT, REFUSED)
    skipped = {"status": "skipped", "why": "no time left"}
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(make_record(gpt=section, llama=skipped)))
    gpu_report.main([str(path)])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "gpt: NVIDIA H200, driver 580, torch 2.11" in lines
    assert "| trl: needs a GPU | | | | | |" in lines
    assert "| llama | no time left |" in lines
    assert "| gpt | fxoffload | 0.610 | 0.640 | 1.001 | 1.020 |" in lines
    assert "| bert | fxoffload | 0.500 | | | |" in lines
    gpu_report.main([str(path), "--json"])
    (verdict,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert verdict["verdict"] == "faster"


def test_an_empty_record_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(make_record()))
    gpu_report.main([str(path), "--json"])
    assert "nothing was measured" in capsys.readouterr().out
