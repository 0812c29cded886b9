"""Run every example as a user does, and check its output."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from matplotlib import image
from python_runs import run_python
from toys import HARDWARE

sys.path.append(str(Path(__file__).parent.parent / "examples"))

import train_gpt

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY_GPT = (
    *("--layers", "2", "--width", "64", "--batch", "8", "--length", "512", "--steps", "3"),
    *("--min-bytes", "64KiB", "--memory-budget", "60%", "--threads", "1"),
)


def succeed(name: str, *arguments: str) -> str:
    return run_python(EXAMPLES / name, *arguments).stdout


def refuse(name: str, *arguments: str, status: int) -> str:
    """What the example printed on stderr."""
    words = run_python(EXAMPLES / name, *arguments, status=status).stderr
    assert "Traceback" not in words
    return words


def read_row(table: str, name: str) -> list[float]:
    """The numbers of one row of a printed table."""
    (row,) = re.findall(rf"^│ {name} +│(.*)$", table, re.MULTILINE)
    return [float(number) for number in re.findall(r"\d+\.\d+", row)]


def assert_demo_done(output: str, folder: Path) -> None:
    """All learned, bytes went to disk and came back, and the plot is a picture."""
    for name in ("first loss", "last loss"):
        plain, moved, _ = read_row(output, name)
        assert plain == pytest.approx(moved, abs=1e-5)
    for first, last in zip(
        *(read_row(output, f"{x} loss") for x in ("first", "last")), strict=True
    ):
        assert first > last
    plain, moved, larger, ratio = read_row(output, "activation peak")
    assert ratio == pytest.approx(moved / plain, abs=0.01)
    assert ratio < 0.9
    assert larger <= 1.1 * plain, "twice the batch in the memory of plain"
    assert all(written > 0 for written in read_row(output, "written"))
    _, _, _, ratio, low, high = read_row(output, "step time")
    assert 0 < low <= ratio <= high
    read, forwarded = (read_row(output, x) for x in ("read", "forwarded"))
    assert all(sum(pair) > 0 for pair in zip(read, forwarded, strict=True))
    (sentence,) = re.findall(r"^In the .* for a batch of \d+, fxoffload .*$", output, re.MULTILINE)
    assert f"fxoffload trains a batch of 16 ({larger:.1f} MiB)" in sentence
    picture = image.imread(folder / "memory_curve.png")
    assert picture.shape[0] > 400
    assert picture.shape[1] > 800
    assert len({tuple(pixel) for pixel in picture.reshape(-1, picture.shape[2])}) > 50


def test_train_gpt(spill_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where a drive is slow at the moment, plans recompute.
    monkeypatch.setenv("FXOFFLOAD_HARDWARE", json.dumps(HARDWARE))
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 20)
    folder = tmp_path / "output"
    arguments = ("--text", str(text), "--output", str(folder), "--directory", str(spill_directory))
    output = succeed("train_gpt.py", *TINY_GPT, *arguments, "--compiler", "eager")
    assert_demo_done(output, folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--text", "nowhere.txt"), "nowhere.txt: No such file or directory"),
        (("--text", os.devnull), f"{os.devnull} has 0 bytes; --length 512 needs more than that"),
        (("--memory-budget", "lots"), "memory_budget='lots' is not a size"),
        (("--memory-budget", "half%"), "memory_budget='half%' is not a size"),
        (("--width", "100"), "--width 100 is not a multiple of 64"),
        (("--steps", "1"), "--steps must be at least 2"),
    ],
)
def test_train_gpt_refuses_in_words(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        train_gpt.main([*arguments, "--output", str(tmp_path)])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_train_gpt_names_a_missing_directory(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    arguments = ("--directory", str(missing), "--output", str(tmp_path))
    words = refuse("train_gpt.py", *arguments, status=2)
    assert f"directory='{missing}' does not exist" in words


def test_train_mlp(spill_directory: Path) -> None:
    arguments = ("--compiler", "eager", "--directory", str(spill_directory))
    output = succeed("train_mlp.py", *arguments)
    losses = [float(loss) for loss in re.findall(r"^step \d  loss (\S+)$", output, re.MULTILINE)]
    assert len(losses) == 5
    assert losses == sorted(losses, reverse=True)
    moved, written, cancelled, read, forwarded = (
        int(re.search(pattern, output)[1])  # pyright: ignore[reportOptionalSubscript]
        for pattern in (
            r"moved (\d+) bytes",
            r"(\d+) written",
            r"(\d+) not needed",
            r"(\d+) read back",
            r"(\d+) found in memory",
        )
    )
    assert written > 0
    assert written + cancelled == moved
    assert read + forwarded == moved


def test_explain_plan(spill_directory: Path) -> None:
    arguments = ("--directory", str(spill_directory), "--graphs")
    output = succeed("explain_plan.py", *arguments)
    assert "move to nvme" in output
    for op in ("offload", "release", "prefetch", "wait"):
        assert f"torch.ops.fxoffload.{op}.default" in output
    budgeted = succeed("explain_plan.py", *arguments, "--memory-budget", "1GiB")
    assert "keep: fits the budget where it is" in budgeted
    assert "move to nvme" not in budgeted


def test_explain_plan_refuses_in_words() -> None:
    words = refuse("explain_plan.py", "--memory-budget", "3 apples", status=1)
    assert "memory_budget='3 apples' is not a size" in words
