"""Profiles: factors by node name, digests, and files on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxoffload.profile import Profile

PROFILE = Profile((("mm", 1.25), ("relu", 0.5)), default=1.1)


def test_a_node_that_was_not_measured_has_the_default() -> None:
    assert [PROFILE.find_factor(name) for name in ("mm", "relu", "add")] == [1.25, 0.5, 1.1]


def test_a_profile_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    assert Profile.recall(path) is None
    PROFILE.keep(path)
    assert Profile.recall(path) == PROFILE
    assert list(path.parent.iterdir()) == [path]


def test_the_digest_tells_profiles_apart() -> None:
    others = [
        Profile((("mm", 1.25), ("relu", 0.5)), default=1.2),
        Profile((("mm", 1.25), ("relu", 0.6)), default=1.1),
        Profile((("mm", 1.25),), default=1.1),
    ]
    assert len({profile.digest for profile in (PROFILE, *others)}) == 4
    assert PROFILE.digest == Profile(PROFILE.factors, default=1.1).digest


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"default": 1.0}', '{"default": 1.0, "factors": []}',
     '{"default": 1.0, "factors": {"mm": "fast"}}', '{"default": 0.0, "factors": {}}',
     '{"default": 1.0, "factors": {"mm": -1.0}}', '{"default": NaN, "factors": {}}'],
)  # fmt: skip
def test_other_files_hold_no_profile(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    assert Profile.recall(path) is None
