"""Hints at names that were meant."""

from __future__ import annotations

from fxoffload.hints import find_hint


def test_the_nearest_name_is_the_hint() -> None:
    assert find_hint("colour", ["hue", "color", "colon"]) == "did you mean 'color'? "


def test_nothing_near_gives_no_hint() -> None:
    assert find_hint("colour", ["x", "y"]) == ""
    assert find_hint("colour", []) == ""


def test_prefixes_are_not_compared() -> None:
    hint = find_hint("MODES", ["MODE", "PRE"], prefix="PRE_")
    assert hint == "did you mean 'PRE_MODE'? "
